"""One self-contained page per run: what was found, what was done with it, and what came of it."""

from versatune_ray.report.build import build_report
from versatune_ray.report.runs import compare_runs

__all__ = ["build_report", "compare_runs"]
