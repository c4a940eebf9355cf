"""Ray Data's own mixer, ``Dataset.mix``, beside our sampler: the same static shares of the same
domains.

usage: python tests/bench/ray_mix.py [--quick]

Three figures, each ours over Ray's:

- ``ray_mix_rate``: samples per second. Ours draws places among records that workers memory-map and
  then reads these records' tokens; Ray streams blocks of rows, here of token arrays in memory, to
  one consumer in batches of ``BATCH``. Rows of Ray are read once each; the clock starts with its
  first batch, so that starting it does not count.
- ``ray_mix_deviation``: how far a domain's count is from its share of what was drawn, at worst over
  all batches and domains, in samples; Ray's over ours. ``detail`` has both, and how far it is once
  the smallest domain is used up, which Ray does not repeat.
- ``ray_mix_resume``: seconds to come to the second half of the run. Ours loads its state; a mixed
  dataset has none, so that everything before is drawn again.
"""

from __future__ import annotations

import time
from typing import Any

import common
import numpy as np

from versatune_ray.mixture import DomainSampler

SHARES = (0.3, 0.2, 0.2, 0.15, 0.1, 0.05)
BATCH, LENGTH = 64, 64  # samples, tokens
ROWS, SCARCE = 8_192, 0.25  # of each domain; the last has a part of what its share asks for


def sizes_of(rows: int) -> list[int]:
    total = rows / max(SHARES)
    return [*(int(share * total) for share in SHARES[:-1]), int(SCARCE * SHARES[-1] * total)]


def worst(domains: Any, batches: int) -> float:
    """Largest distance of a count from its share of what was drawn so far, over some batches."""
    counts, found = np.zeros(len(SHARES)), 0.0
    for domain in domains[:batches]:
        counts += np.bincount(domain, minlength=len(SHARES))
        found = max(found, float(abs(np.array(SHARES) * counts.sum() - counts).max()))
    return found


def ours(arguments: dict[str, Any]) -> Any:
    sizes, batches = sizes_of(arguments["rows"]), arguments["batches"]
    tokens = [np.zeros((size, LENGTH), np.int32) for size in sizes]
    sampler, domains = DomainSampler(sizes, BATCH, seed=0), []
    sampler.next_batch(SHARES)
    began, read = time.perf_counter(), 0
    for _ in range(batches):
        domain, index = sampler.next_batch(SHARES)
        read += sum(tokens[one][at].nbytes for one, at in zip(domain, index, strict=True))
        domains.append(domain)
    seconds = time.perf_counter() - began
    state, again = sampler.state_dict(), DomainSampler(sizes, BATCH, seed=0)
    began = time.perf_counter()
    again.load_state_dict(state)
    again.next_batch(SHARES)
    resume = time.perf_counter() - began
    return {
        "rate": batches * BATCH / seconds,
        "worst": worst(domains, batches),
        "resume": resume,
        "bytes": read,
    }


def rays(arguments: dict[str, Any]) -> Any:
    import ray

    sizes = sizes_of(arguments["rows"])
    with common.ray_session(cpus=2):
        ray.data.DataContext.get_current().enable_progress_bars = False
        parts = [
            ray.data.from_blocks(
                [_block(domain, min(BATCH, size - start)) for start in range(0, size, BATCH)]
            )
            for domain, size in enumerate(sizes)
        ]
        mixed = parts[0].mix(*parts[1:], weights=list(SHARES))
        domains, ends = [], []
        began = time.perf_counter()
        for batch in mixed.iter_batches(batch_size=BATCH, batch_format="numpy"):
            domains.append(batch["domain"])
            ends.append(time.perf_counter())
    counts = np.cumsum([np.bincount(one, minlength=len(SHARES)) for one in domains], axis=0)
    whole = int(np.searchsorted(counts[:, -1], sizes[-1]))  # batches until the last is used up
    return {
        "rate": BATCH * (len(ends) - 1) / (ends[-1] - ends[0]),
        "worst": worst(domains, whole),
        "worst_afterwards": worst(domains, len(domains)),
        "batches": len(domains),
        "batches_before": whole,
        "resume": ends[len(ends) // 2] - began,
    }


def _block(domain: int, rows: int) -> Any:
    import pyarrow as pa

    tokens = pa.FixedSizeListArray.from_arrays(np.zeros(rows * LENGTH, np.int32), LENGTH)
    return pa.table({"domain": np.full(rows, domain), "tokens": tokens})


def parent(quick: bool) -> None:
    rows, rounds = (1_024, 1) if quick else (ROWS, 3)
    batches = sum(sizes_of(rows)) // BATCH
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "ray": []}
    for number in range(rounds):
        for side in ("ours", "ray") if number % 2 == 0 else ("ray", "ours"):
            told, _ = common.side(__file__, side, {"rows": rows, "batches": batches}, timeout=150)
            found[side].append(told)
    pairs = list(zip(found["ours"], found["ray"], strict=True))
    both = {
        side: {key: [round(one[key], 5) for one in all_] for key in all_[0]}
        for side, all_ in found.items()
    }
    detail = both | {"batch_size": BATCH, "sizes": sizes_of(rows)} | common.machine()
    common.report("ray_mix_rate", [us["rate"] / ray["rate"] for us, ray in pairs], 1.0, detail)
    deviation = [ray["worst"] / max(us["worst"], 1e-9) for us, ray in pairs]
    common.report("ray_mix_deviation", deviation, 1.0, {})
    common.report("ray_mix_resume", [ray["resume"] / us["resume"] for us, ray in pairs], 1.0, {})


if __name__ == "__main__":
    common.run(__doc__, parent, {"ours": ours, "ray": rays})
