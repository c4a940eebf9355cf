"""Who computes what: a global batch spread over ranks and cut into micro-batches. Pure NumPy, a
function of lengths alone.

Every rank works out the whole plan by itself, so none has to ask how many micro-batches the others
have.
"""

from __future__ import annotations

from heapq import heapify, heapreplace

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
# tokens that could be computed in the time that one more forward and backward pass costs
_CALL = 64


def spread(costs: NDArray[np.float64], bins: int) -> list[Indices]:
    """Items to ``bins`` of nearly equal cost (longest processing time first, Graham 1969); as many
    items as bins leave none empty.

    Args:
        costs: one per item, [n], > 0.

    Returns:
        ``bins`` arrays of item numbers, each ascending; together every item once.
    """
    loads = [(0.0, place) for place in range(bins)]
    heapify(loads)
    chosen: list[list[int]] = [[] for _ in range(bins)]
    for item in np.argsort(-costs, kind="stable"):
        load, place = loads[0]
        chosen[place].append(int(item))
        heapreplace(loads, (load + float(costs[item]), place))
    return [np.array(sorted(items), dtype=np.int64) for items in chosen]


def packed_rows(lengths: NDArray[np.int64], capacity: int, rows: int) -> list[Indices] | None:
    """Items to exactly ``rows`` rows of at most ``capacity`` tokens, evenly filled; None if they do
    not fit.

    A longer item has a row to itself.
    """
    room = max(capacity, int(lengths.max(initial=0)))
    chosen = spread(lengths.astype(np.float64), rows)
    return chosen if all(int(lengths[row].sum()) <= room for row in chosen) else None


def padded_rows(lengths: NDArray[np.int64], capacity: int) -> list[Indices]:
    """Items of like length together, at most ``capacity`` tokens with padding in each micro-batch;
    a longer item goes alone.

    Of all ways to cut the sorted items, the one with the fewest tokens, where each micro-batch
    costs ``_CALL`` tokens more.
    """
    order = np.argsort(lengths, kind="stable")
    size, count = lengths[order].astype(np.float64), len(order)
    best = np.zeros(count + 1)  # of the first j items
    cut = np.zeros(count + 1, dtype=np.int64)  # where their last micro-batch begins
    for end in range(1, count + 1):
        first = min(end - 1, max(0, end - int(capacity // size[end - 1])))
        costs = best[first:end] + size[end - 1] * np.arange(end - first, 0, -1) + _CALL
        cut[end] = first + int(costs.argmin())
        best[end] = costs.min()
    found: list[Indices] = []
    end = count
    while end:
        found.append(order[cut[end] : end])
        end = int(cut[end])
    return found[::-1]


def micro_batches(
    lengths: NDArray[np.int64],
    costs: NDArray[np.float64],
    world: int,
    capacity: int,
    *,
    packed: bool,
    equal: bool,
) -> list[list[Indices]]:
    """The micro-batches of every rank, as numbers of items of the global batch.

    Args:
        lengths: tokens per item, [n].
        costs: work per item, [n], in any unit (see ``attention_cost``).
        capacity: most tokens per micro-batch, padding included.
        packed: several items become one row; else one item is one row, padded to the longest of its
            micro-batch.
        equal: all ranks get the same number, by empty ones where it has to be (ranks that gather
            parameters go in step).
    """
    mine = spread(costs, world)
    if packed:
        rows = max(1, max(-(-int(lengths[items].sum()) // capacity) for items in mine))
        while None in (cut := [packed_rows(lengths[items], capacity, rows) for items in mine]):
            rows += 1
    else:
        cut = [padded_rows(lengths[items], capacity) for items in mine]
    plan = [
        [items[row] for row in found or () if len(row)]
        for items, found in zip(mine, cut, strict=True)
    ]
    if equal:
        most = max(map(len, plan))
        nothing = np.zeros(0, dtype=np.int64)
        plan = [[*batches, *[nothing] * (most - len(batches))] for batches in plan]
    return plan


def attention_cost(lengths: NDArray[np.int64], parameters: int, width: int) -> NDArray[np.float64]:
    """Work of one sample in units of its shortest possible token: L · (1 + L · width / parameters),
    [n].

    Per token, matrix products cost 2 · ``parameters`` operations and causal attention 2 · L ·
    ``width`` (``width``: layers × heads × head size), forward, of one sample of L tokens (Kaplan et
    al. 2020, table 1).
    """
    length = lengths.astype(np.float64)
    return length * (1 + length * width / max(1, parameters))
