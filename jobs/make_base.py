"""Pre-train a tiny base model with a known mixture, and a tiny judge, from the microworld or any
text corpora.

usage: python jobs/make_base.py [--config FILE] [--plan] [key=value …]
prints: the model's folder; the judge lies in the cache beside it
"""

from pathlib import Path

from versatune_ray.cli import main
from versatune_ray.pipeline import Run
from versatune_ray.pipeline.plans import plan_base


def job(run: Run) -> Path:
    return run.make_base()


if __name__ == "__main__":
    main("make_base", job, __doc__, plan_base, uses=())
