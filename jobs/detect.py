"""Find out what base models know: sequences from BOS, judged by domain (Algorithm 1); one model or
many (detection.models).

usage: python jobs/detect.py [--config FILE] [--plan] [key=value …]
leaves: {storage}/{run}/detection/
"""

from pathlib import Path

from versatune_ray.cli import main
from versatune_ray.pipeline import Run
from versatune_ray.pipeline.plans import plan_detection


def job(run: Run) -> Path:
    return run.detect_all()


if __name__ == "__main__":
    main("detect", job, __doc__, plan_detection, uses=("detection",))
