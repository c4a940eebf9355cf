"""One self-contained page per run: what was found, what was done with it, and what came of it."""

from versatune_ray.report.compare import compare_runs
from versatune_ray.report.page import build_report

__all__ = ["build_report", "compare_runs"]
