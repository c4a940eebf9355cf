"""The loss of response tokens alone: its time over logits everywhere, and the memory of chunked
over whole logits.

usage: python tests/bench/masked_training.py [--quick]        (--quick: fewer tokens and rounds)

A small random decoder under Qwen2.5's vocabulary, so that the head is nearly all the work; records
of real lengths and masks.

- ``masked_training_time``: forward and backward pass of ``ResponseLoss`` over those of the same
  model with logits at every position and prompts masked in the loss, as transformers does it.
  Micro-batches are the same; the two alternate.
- ``masked_training_memory``: what a forward and backward pass of the head adds to resident memory
  at its peak, ``ResponseLoss`` over whole logits of the very same response positions; each in a
  process of its own.

Both are to stay below their goals.
"""

from __future__ import annotations

import resource
import statistics
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import common
import training

GOALS = {"time": 1.1, "memory": 0.5}
VOCABULARY = 151_936
SHAPE = {
    "vocabulary": VOCABULARY,
    "hidden": 128,
    "layers": 2,
    "heads": 4,
    "intermediate": 344,
    "context": 1024,
}
ROUNDS, TOKENS, TARGETS = 5, 1024, 1024
QUICK = {"rounds": 2, "tokens": 256, "targets": 256}


def memory(given: dict[str, Any]) -> Any:
    """Most resident memory of one pass through the head beyond what was there before, bytes."""
    import torch
    from torch.nn import functional

    from versatune_ray.training.loss import ResponseLoss
    from versatune_ray.training.model import load_model

    module = ResponseLoss(load_model(given["model"]))
    rows, targets = given["targets"] // 128, given["targets"]
    tokens = torch.randint(1, VOCABULARY, (rows, 128))
    kept, wanted = torch.arange(targets), torch.randint(1, VOCABULARY, (targets,))
    hidden = torch.randn(rows, 128, SHAPE["hidden"], requires_grad=True)
    module.model.get_decoder().forward = lambda **_: _Hidden(hidden)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _peak()
    if given["whole"]:
        logits = functional.linear(
            hidden.flatten(0, 1)[kept], module.model.get_output_embeddings().weight
        ).float()
        functional.cross_entropy(logits, wanted, reduction="none").sum().backward()
    else:
        module(tokens, kept, wanted, torch.ones(targets))[0].backward()
    return _peak() - before


class _Hidden:
    def __init__(self, state: Any):
        self.last_hidden_state = state


def _peak() -> int:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def times(given: dict[str, Any]) -> Any:
    """Seconds of both sides, over and over the same micro-batches, in turns."""
    import numpy as np
    import torch
    from torch.nn import functional

    from versatune_ray.training.batches import Layout, Samples
    from versatune_ray.training.loss import ResponseLoss
    from versatune_ray.training.model import load_model

    model = load_model(given["model"])
    module, plain = ResponseLoss(model), load_model(given["model"])
    records = [domain.train for domain in training.read_domains(given["stores"], held_out=1)]
    domain = np.concatenate([np.full(len(one), number) for number, one in enumerate(records)])
    index = np.concatenate([np.arange(len(one)) for one in records])
    lengths = np.concatenate([one.lengths for one in records])
    taken = int(np.searchsorted(np.cumsum(lengths), given["tokens"])) + 1
    tokens, order = int(lengths[:taken].sum()), np.argsort(lengths[:taken], kind="stable")
    samples = Samples(records, domain[order], index[order])
    layout = Layout("padded", 1, 1, world=1, rank=0, equal=False, pinned=False)
    parts = [np.arange(place, min(place + 4, len(samples))) for place in range(0, len(samples), 4)]
    batches = [layout.collate(samples.take(part), np.ones(len(records))).inputs for part in parts]

    def masked() -> None:
        for batch in batches:
            module(**batch)[0].backward()

    def everywhere() -> None:
        for batch in batches:
            labels = torch.full(batch["tokens"].shape, -100)
            labels.view(-1)[batch["kept"] + 1] = batch["targets"]
            logits = plain(input_ids=batch["tokens"], use_cache=False).logits.float()
            functional.cross_entropy(
                logits[:, :-1].flatten(0, 1),
                labels[:, 1:].flatten(),
                ignore_index=-100,
                reduction="sum",
            ).backward()

    found: dict[str, list[float]] = {"masked": [], "everywhere": []}
    for number in range(given["rounds"] + 1):
        for side in (masked, everywhere) if number % 2 == 0 else (everywhere, masked):
            model.zero_grad()
            plain.zero_grad()
            began = time.perf_counter()
            side()
            if number:
                found[side.__name__].append(time.perf_counter() - began)
    kept = sum(len(batch["kept"]) for batch in batches)
    return {**found, "tokens": tokens, "response": kept}


def parent(quick: bool) -> None:
    rounds, tokens, targets = (
        (QUICK["rounds"], QUICK["tokens"], QUICK["targets"]) if quick else (ROUNDS, TOKENS, TARGETS)
    )
    with tempfile.TemporaryDirectory(prefix="vtb") as scratch:
        folder = Path(scratch)
        shape = training.random_llama(folder / "model", **SHAPE)
        domains, records = training.encoded(16, 512, VOCABULARY)
        mixed = [[sample for group in zip(*domains, strict=True) for sample in group]]
        given = {
            "model": str(folder / "model"),
            "stores": training.write_domains(folder / "stores", mixed, ["mixed"]),
        }
        given |= {"rounds": rounds, "tokens": tokens, "targets": targets}
        took, _ = common.side(__file__, "times", given, timeout=900)
        peaks = {
            whole: [
                common.side(__file__, "memory", given | {"whole": whole}, timeout=300)[0]
                for _ in range(1 if quick else 3)
            ]
            for whole in (False, True)
        }
    detail = {"model": shape, "rounds": rounds} | common.machine()
    ratios = [
        mine / theirs for mine, theirs in zip(took["masked"], took["everywhere"], strict=True)
    ]
    more = {
        "ms": {
            side: round(1000 * statistics.median(took[side])) for side in ("masked", "everywhere")
        },
        "records": records,
        "tokens_and_of_responses": [took["tokens"], took["response"]],
    }
    common.report("masked_training_time", ratios, GOALS["time"], more | detail, lower=True)
    ratios = [mine / theirs for mine, theirs in zip(peaks[False], peaks[True], strict=True)]
    mib = {"chunked": peaks[False], "whole": peaks[True]}
    more = {
        "targets": targets,
        "peak_mib": {side: [round(peak / 2**20) for peak in found] for side, found in mib.items()},
    }
    more |= {"gradient_of_the_head_mib": round(VOCABULARY * SHAPE["hidden"] * 4 / 2**20)}
    common.report("masked_training_memory", ratios, GOALS["memory"], more | detail, lower=True)


if __name__ == "__main__":
    common.run(__doc__, parent, {"times": times, "memory": memory})
