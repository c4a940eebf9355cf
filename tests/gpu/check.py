"""Whether training is right on this machine's GPU: losses, gradients, packing, compiling, resuming.
Without a GPU, what a CPU can do.

usage: bash tests/gpu/run check        one JSON line per check; status 1 where one fails
"""

from __future__ import annotations

import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import CARD, DEVICE, GPU, note, report
from world import PLAIN, RECIPE, SHARES, World, gathered, plain, stand_in

from versatune_ray.settings import Lora, Training
from versatune_ray.training.batches import Samples
from versatune_ray.training.checkpoint import Checkpoints
from versatune_ray.training.families import FAMILIES
from versatune_ray.training.step import Unrecoverable

KINDS = ("padded", "sdpa", "flex", "varlen") if GPU else ("padded", "sdpa", "varlen")


def family_is_right(world: World, family: str) -> dict[str, Any]:
    """Every kind of attention against ``plain``: bf16's noise on a GPU, float32's on a CPU."""
    loss, gradient = plain(world, family)
    tolerance = (0.01, 0.06) if GPU else (1e-5, 1e-3)
    detail: dict[str, Any] = {}
    for kind in KINDS:
        one = world.trainer(family, kind, PLAIN)
        one.optimizer.zero_grad = lambda **_: None  # type: ignore[method-assign, assignment]
        found = one.step(SHARES)
        ours = {name: gathered(parameter.grad) for name, parameter in one.model.named_parameters()}
        distance = (
            sum(float((ours[name] - gradient[name]).square().sum()) for name in gradient) ** 0.5
        )
        size = sum(float(values.square().sum()) for values in gradient.values()) ** 0.5
        detail[kind] = {"loss": abs(found - loss) / loss, "gradient": distance / size}
        assert abs(found - loss) <= tolerance[0] * loss, f"{kind}: loss {found} and not {loss}"
        assert distance <= tolerance[1] * size, (
            f"{kind}: the gradient is {distance / size:.4f} of its length away"
        )
    return detail


def packing_leaks_nothing(world: World) -> dict[str, Any]:
    """Another first sample of the same length: the others' nats are the same to the last bit."""
    length = world.data[0].train.lengths
    first = next(np.flatnonzero(length == n)[:2] for n in length if (length == n).sum() > 1)
    for kind in KINDS[1:]:
        one, found = world.trainer(kind=kind), []
        for index in first:
            samples = Samples(
                [domain.train for domain in world.data],
                np.array([0, 1, 1, 1]),
                np.array([index, 5, 6, 7]),
            )
            with torch.no_grad():
                nats = one.parallel.forward(
                    one._layout.collate(samples, None).to(DEVICE).inputs, train=False
                )
            others = int(samples.response_tokens[1:].sum())
            found.append(nats.split([len(nats) - others, others]))
        assert not torch.equal(found[0][0], found[1][0]), kind
        assert torch.equal(found[0][1], found[1][1]), kind
    return {"kinds": KINDS[1:]}


def compiling_changes_little_and_happens_once(world: World) -> dict[str, Any]:
    torch._dynamo.reset()
    eager, compiled = world.trainer(), world.trainer(compile=True)
    began = time.perf_counter()
    losses = [(eager.step(SHARES), compiled.step(SHARES)) for _ in range(3)]
    seconds = time.perf_counter() - began
    with torch.compiler.set_stance("fail_on_recompile"):
        losses += [(eager.step(SHARES), compiled.step(SHARES)) for _ in range(5)]
    assert np.allclose(*zip(*losses, strict=True), rtol=0.01 if GPU else 1e-4), losses
    return {"seconds_of_the_first_steps": round(seconds, 1)}


def recomputing_changes_no_number(world: World) -> dict[str, Any]:
    for how in ("full", "every 2"):
        one, again = world.trainer(), world.trainer(activation_checkpointing=how)
        for _ in range(3):
            found, expected = again.step(SHARES), one.step(SHARES)
            assert abs(found - expected) <= 1e-3 * expected, (how, found, expected)
    return {}


def learns(world: World, **more: Any) -> dict[str, Any]:
    """Twelve steps on one batch's worth of records bring the loss down, near that of plain
    AdamW.
    """
    exact, other = world.trainer(recipe=replace(RECIPE, learning_rate=3e-3)), world.trainer(**more)
    first, *_, last = [other.step(SHARES) for _ in range(12)]
    expected = [exact.step(SHARES) for _ in range(12)][-1]
    assert last < first - 0.05, (first, last)
    return {"first": first, "last": last, "plain": expected}


def lora_learns(world: World) -> dict[str, Any]:
    return learns(
        world, training=Training(lora=Lora(rank=8)), recipe=replace(RECIPE, learning_rate=1e-2)
    )


def eight_bits_learn(world: World) -> dict[str, Any]:
    return learns(world, recipe=replace(RECIPE, optimizer="adamw_8bit", learning_rate=3e-3))


def bf16_weights_learn(world: World) -> dict[str, Any]:
    return learns(world, recipe=replace(RECIPE, optimizer="adamw_bf16", learning_rate=3e-3))


def a_soft_mask_keeps_units(world: World) -> dict[str, Any]:
    rows = {"self_attn.q_proj": 128, "mlp.up_proj": 256, "mlp.down_proj": 128}
    importance = {
        f"model.layers.{layer}.{name}": (torch.arange(count) % 2).float()
        for layer in range(2)
        for name, count in rows.items()
    }
    one = world.trainer(importance=importance)
    before = {name: gathered(values).clone() for name, values in one.model.state_dict().items()}
    for _ in range(3):
        one.step(SHARES)
    for name in importance:
        now, then = gathered(one.model.state_dict()[f"{name}.weight"]), before[f"{name}.weight"]
        assert torch.equal(now[1::2], then[1::2]) and not torch.equal(now[0::2], then[0::2]), name
    return {}


def resumes_to_the_bit(world: World, optimizer: str) -> dict[str, Any]:
    recipe, saved = replace(RECIPE, optimizer=optimizer), world.folder / f"saved-{optimizer}"  # type: ignore[arg-type]
    whole = world.trainer(recipe=recipe)
    for step in range(6):
        whole.step(SHARES)
        if step == 2:
            began = time.perf_counter()
            writing = Checkpoints(whole).save(saved)
            seconds = time.perf_counter() - began
            writing.result()
    again = world.trainer(recipe=recipe)
    Checkpoints(again).load(saved)
    for _ in range(3):
        again.step(SHARES)
    for name, values in whole.model.state_dict().items():
        assert torch.equal(gathered(values), gathered(again.model.state_dict()[name])), name
    return {"seconds_until_training_went_on": round(seconds, 3)}


def a_loss_that_is_no_number_is_named(world: World) -> dict[str, Any]:
    one = world.trainer()
    with torch.no_grad():
        norm = one.model.get_decoder().norm.weight
        (norm.to_local() if hasattr(norm, "to_local") else norm)[0] = torch.nan
    try:
        one.step(SHARES)
    except Unrecoverable as error:
        assert "step 1: the loss is not finite on domain0: domain0.jsonl:" in str(error), error
        return {"told": str(error)[:120]}
    raise AssertionError("it went on")


def reads_the_device_once_a_step(world: World) -> dict[str, Any]:
    """Counted by torch's own warning of a synchronisation."""
    import warnings

    one = world.trainer(compile=True)
    for _ in range(3):
        one.step(SHARES, ahead=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        one.step(SHARES, ahead=True)
        torch.cuda.set_sync_debug_mode("default")
    told = [str(item.message) for item in caught if "synchroniz" in str(item.message)]
    assert len(told) <= 1, told
    return {"reads": len(told)}


def main() -> int:
    checks: list[tuple[str, Callable[[World], dict[str, Any]]]] = [
        *(
            (f"family: {family}", lambda world, family=family: family_is_right(world, family))
            for family in FAMILIES
        ),
        ("packing leaks nothing", packing_leaks_nothing),
        ("compiling", compiling_changes_little_and_happens_once),
        ("recomputing", recomputing_changes_no_number),
        ("lora", lora_learns),
        ("adamw_8bit", eight_bits_learn),
        ("adamw_bf16", bf16_weights_learn),
        ("soft mask", a_soft_mask_keeps_units),
        *(
            (f"resume: {kind}", lambda world, kind=kind: resumes_to_the_bit(world, kind))
            for kind in ("adamw", "adamw_8bit", "adamw_bf16")
        ),
        ("no number", a_loss_that_is_no_number_is_named),
        *([("one read a step", reads_the_device_once_a_step)] if GPU else []),
    ]
    note(f"torch {torch.__version__} on {CARD}")
    if not GPU:
        stand_in()
    failed = 0
    with tempfile.TemporaryDirectory(prefix="vtg") as folder:
        world = World(Path(folder))
        for name, check in checks:
            began = time.perf_counter()
            try:
                detail: dict[str, Any] = check(world)
                passes = True
            except Exception as error:  # the other checks are wanted all the same
                detail, passes = {"error": f"{type(error).__name__}: {error}"[:1000]}, False
                traceback.print_exc()
                failed += 1
            report(
                name, passes=passes, seconds=round(time.perf_counter() - began, 1), detail=detail
            )
    left = (
        []
        if GPU
        else [
            "flash attention itself (a stand-in here)",
            "flex attention",
            "bf16 kernels",
            "reads of the device",
            "NCCL",
        ]
    )
    report(
        "check",
        passes=not failed,
        card=CARD,
        torch=torch.__version__,
        checks=len(checks),
        failed=failed,
        needs_a_gpu=left,
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
