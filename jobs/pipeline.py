"""The whole method: detection → reference losses → dynamic fine-tuning → evaluation → report.

usage: python jobs/pipeline.py [--config FILE] [--plan] [key=value …]
leaves: {storage}/{run}/report.html and all it shows
"""

from pathlib import Path

from versatune_ray.cli import main
from versatune_ray.evaluation.benchmarks import check_benchmarks
from versatune_ray.pipeline import Run
from versatune_ray.pipeline.checks import TUNING
from versatune_ray.pipeline.plans import plan_pipeline
from versatune_ray.settings import Config


def job(run: Run) -> Path:
    run.evaluate()
    return run.report()


def check(config: Config) -> None:
    if config.evaluation.benchmarks:
        check_benchmarks(config)


if __name__ == "__main__":
    main("pipeline", job, __doc__, plan_pipeline, check, uses=(*TUNING, "models"))
