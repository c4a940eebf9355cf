"""What every rank does by itself, and where one fails all have to hear of it: else the others wait
for it until a time-out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from versatune_ray.errors import UserError


class UserErrorOfAll(UserError):
    """The same on every rank."""


@contextmanager
def together(world: int, group: dist.ProcessGroup | None = None) -> Iterator[None]:
    """Around what a rank does without the others. It ends when all ranks have come to its end, or
    one has met a user's mistake.

    Raises:
        UserErrorOfAll: on every rank, that of the first rank that has one; which ranks, where not
            all have it.
    """
    error: UserError | None = None
    try:
        yield
    except UserError as caught:
        error = caught
    told: list[str | None] = [None if error is None else str(error)]
    if world > 1:
        told *= world
        dist.all_gather_object(told, told[0], group=group)
    failed = [rank for rank, text in enumerate(told) if text is not None]
    if failed:
        where = "" if len(failed) == world else f"rank {', '.join(map(str, failed))}: "
        raise UserErrorOfAll(f"{where}{told[failed[0]]}") from error
