"""Peak resident memory of detection at ten times the sequences: ours at 20,000 over ours at 2,000;
the figure is to stay below its goal.

usage: python tests/bench/detection_memory.py [--quick]        (--quick: 200 and 2,000, not judged:
a start of an engine less for each)

Each size is detected (``generate``, then ``judge``; 16 tokens a sequence) in a process and a Ray of
its own, while the resident memory of all its processes is sampled every 0.2 s. The ratio is the
larger of two: the driver's peaks, and the peaks of the largest worker (engine actors, vLLM's engine
processes, map tasks). Resident memory counts the pages of the object store that a process has
touched, so it overstates rather than understates. One round: memory varies less from run to run
than time does.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import common
import detection

GOAL = 1.1
SIZES = (2_000, 20_000)
QUICK = (200, 2_000)
TOKENS = 16
WORKERS = ("engine actor", "engine core", "engine worker", "map tasks")


def detect(given: dict[str, Any]) -> Any:
    from versatune_ray.detection.generate import generate
    from versatune_ray.detection.judge import judge
    from versatune_ray.detection.texts import Texts

    count = given["count"]
    folder = Path(tempfile.mkdtemp())
    with common.ray_session():
        source = detection.generation_source(
            given["models"]["long"], folder / "parts", {"max_tokens": TOKENS}, {}
        )
        made = generate(source, count, gpu=False)
        assert made == count
        if given.get("judging", True):
            (answered,) = judge(
                detection.judge_source(given["models"]["judge"], {}),
                [Texts(folder / "parts", count, folder / "judged")],
            )
            assert answered >= 0.99 * count  # an empty generation is not judged
    return {
        "parts": len(list((folder / "parts").glob("*.parquet"))),
        "judged_parts": len(list((folder / "judged").glob("*.parquet"))),
    }


def parent(quick: bool) -> None:
    small, large = QUICK if quick else SIZES
    peaks: dict[int, dict[str, int]] = {}
    store: dict[int, int] = {}
    parts = {}
    with tempfile.TemporaryDirectory(prefix="vtb") as folder:
        models = detection.tiny_models(Path(folder))
        for count in (small, large):
            parts[count], watch = common.side(
                __file__,
                "detect",
                {"models": models, "count": count, "judging": not quick},
                timeout=900,
                every=0.2,
            )
            peaks[count] = watch.peaks()
            store[count] = max(
                (watch.shared[pid] for pid, kind in watch.kind.items() if kind == "raylet"),
                default=0,
            )
            common.note(f"{count} sequences: {_mib(peaks[count])}")
        grown = {
            pid: [round(rss / 2**20) for rss in _tenths(watch.resident[pid])]
            for pid, kind in watch.kind.items()
            if kind == "engine worker"
        }
    largest = {
        count: max(peaks[count][kind] for kind in WORKERS if kind in peaks[count])
        for count in peaks
    }
    ratios = {
        "driver": peaks[large]["driver"] / peaks[small]["driver"],
        "largest worker": largest[large] / largest[small],
    }
    detail = {
        "is": f"peak resident memory of ours at {large} sequences over ours at {small}; "
        f"lower is better, at most {GOAL}",
        "ratios": {name: round(ratio, 3) for name, ratio in ratios.items()},
        "ratios_by_kind": {
            kind: round(peaks[large][kind] / peak, 3)
            for kind, peak in peaks[small].items()
            if peaks[large].get(kind)
        },
        "peak_mib": {str(count): _mib(peaks[count]) for count in peaks},
        f"engine_workers_mib_by_tenths_of_their_life_at_{large}": list(grown.values()),
        "object_store_mib": {str(count): round(used / 2**20) for count, used in store.items()},
        "parts": {str(count): found for count, found in parts.items()},
    }
    common.report(
        "detection_memory", [max(ratios.values())], GOAL, detail | common.machine(), lower=True
    )


def _tenths(samples: list[int]) -> list[int]:
    return [samples[round(place * (len(samples) - 1) / 10)] for place in range(1, 11)]


def _mib(peaks: dict[str, int]) -> dict[str, int]:
    return {kind: round(peak / 2**20) for kind, peak in sorted(peaks.items())}


if __name__ == "__main__":
    common.run(__doc__, parent, {"detect": detect})
