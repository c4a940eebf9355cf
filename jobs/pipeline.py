"""The whole method: detection → reference losses → dynamic fine-tuning → evaluation → report.

usage: python jobs/pipeline.py [--config FILE] [--plan] [key=value …]      leaves
{storage}/{run}/report.html and all it shows
"""

from pathlib import Path

from versatune_ray.cli import main
from versatune_ray.evaluation.benchmarks import check
from versatune_ray.inputs import TUNING
from versatune_ray.pipeline import Run, plan_pipeline
from versatune_ray.settings import Config


def job(run: Run) -> Path:
    assert run.evaluation
    return run.report()


def check_benchmarks(config: Config) -> None:
    if config.evaluation.benchmarks:
        check(config)


if __name__ == "__main__":
    main(job, __doc__, plan_pipeline, check_benchmarks, uses=(*TUNING, "models"))
