"""The whole method on a small made-up world, and beside it what equal shares that follow what is
left to learn (mixture.preset: balanced) make of the same budget.

usage: python jobs/quickstart.py [--config FILE] [--plan] [key=value …]
leaves: {storage}/{run}/ as pipeline.py does, and {storage}/{run}-balanced/
"""

from pathlib import Path

from versatune_ray.cli import main
from versatune_ray.pipeline import Run
from versatune_ray.pipeline.beside import balanced_beside
from versatune_ray.pipeline.plans import plan_pipeline


def job(run: Run) -> Path:
    run.evaluate()
    balanced_beside(run)
    return run.report()


if __name__ == "__main__":
    main("quickstart", job, __doc__, plan_pipeline)
