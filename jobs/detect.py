"""Find out what the base model knows: sequences from BOS, judged by domain (Algorithm 1).

usage: python jobs/detect.py [--config FILE] [key=value …]      leaves {storage}/{run}/detection/
"""

from pathlib import Path

from versatune_ray.cli import main
from versatune_ray.pipeline import Run


def job(run: Run) -> Path:
    return run.detect()


if __name__ == "__main__":
    main(job, __doc__)
