"""The whole method: detection → reference losses → dynamic fine-tuning → evaluation → report.

usage: python jobs/pipeline.py [--config FILE] [key=value …]      leaves {storage}/{run}/report.html and all it shows
"""

from pathlib import Path

from versatune_ray.cli import main
from versatune_ray.pipeline import Run


def job(run: Run) -> Path:
    assert run.evaluation
    return run.report()


if __name__ == "__main__":
    main(job, __doc__)
