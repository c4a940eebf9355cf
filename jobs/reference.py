"""Reference losses: per domain, the lowest held-out loss of a small model tuned on that domain
alone.

usage: python jobs/reference.py [--config FILE] [--plan] [key=value …]
leaves: {storage}/{run}/reference/losses.json
"""

from pathlib import Path

from versatune_ray.cli import main
from versatune_ray.pipeline import Run
from versatune_ray.pipeline.plans import plan_reference


def job(run: Run) -> Path:
    run.measure_references()
    return run.folder.path / "reference" / "losses.json"


if __name__ == "__main__":
    main("reference", job, __doc__, plan_reference, uses=("records", "reference"))
