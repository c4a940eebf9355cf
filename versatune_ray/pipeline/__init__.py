"""The steps of a run, in order (``run``), what they work on (``inputs``), and what they would take
(``plans``).
"""

from versatune_ray.pipeline.run import Run

__all__ = ["Run"]
