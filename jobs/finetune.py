"""Fine-tune with shares that follow each domain's loss; detects and measures references first where
they are missing.

usage: python jobs/finetune.py [--config FILE] [--plan] [key=value …]
leaves: {storage}/{run}/finetune/model/
"""

from pathlib import Path

from versatune_ray.cli import main
from versatune_ray.pipeline import Run
from versatune_ray.pipeline.plans import plan_finetuning


def job(run: Run) -> Path:
    return run.finetune()


if __name__ == "__main__":
    main("finetune", job, __doc__, plan_finetuning)
