"""The whole method on a small made-up world, and beside it what equal shares that follow what is
left to learn (mixture.preset: balanced) make of the same budget.

usage: python jobs/quickstart.py [--config FILE] [--plan] [key=value …]
leaves: {storage}/{run}/ as pipeline.py does, and {storage}/{run}-balanced/
"""

from pathlib import Path

from versatune_ray.cli import main
from versatune_ray.pipeline import Run
from versatune_ray.pipeline.beside import balanced_beside, check_beside, plan_beside


def job(run: Run) -> Path:
    check_beside(run.given_config)
    run.evaluate()
    balanced_beside(run)
    return run.report()


if __name__ == "__main__":
    main("quickstart", job, __doc__, plan_beside)
