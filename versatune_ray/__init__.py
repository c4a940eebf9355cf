"""Data composition for fine-tuning large language models: the VersaTune method (arXiv 2411.11266)
on Ray.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["detect", "evaluate", "finetune", "reference", "sweep"]


def __getattr__(name: str) -> Any:
    """The steps as functions; loaded when asked for, because workers import parts of this package
    that need none of it.
    """
    if name in __all__:
        from versatune_ray import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
