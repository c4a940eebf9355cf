"""Measure the base model, the tuned one and any others on benchmarks, and put them side by side.

usage: python jobs/evaluate.py [--config FILE] [--plan] [key=value …]
leaves: {storage}/{run}/evaluation/results.json and report.html
Nothing is trained: without a tuned model in this run, the base and
evaluation.models are measured.
"""

from pathlib import Path

from versatune_ray.cli import main
from versatune_ray.evaluation.benchmarks import check_benchmarks
from versatune_ray.pipeline import Run
from versatune_ray.pipeline.plans import plan_evaluation


def job(run: Run) -> Path:
    return run.measure_all()


if __name__ == "__main__":
    main("evaluate", job, __doc__, plan_evaluation, check=check_benchmarks, uses=("models",))
