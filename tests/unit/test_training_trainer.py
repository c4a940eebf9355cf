"""The core's numbers, against a plain per-sample computation; and exact resume."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from versatune_ray.domains import DomainData
from versatune_ray.errors import UserError
from versatune_ray.settings.recipe import Execution, Recipe
from versatune_ray.training.checkpoint import Checkpoints
from versatune_ray.training.model import load_model
from versatune_ray.training.step import Unrecoverable
from versatune_ray.training.trainer import Trainer

RECIPE = Recipe(
    steps=8,
    batch_size=6,
    micro_batch_tokens=40,
    learning_rate=1e-2,
    warmup=0.1,
    weight_decay=0.01,
    max_grad_norm=1.0,
    seed=3,
)
SHARES = np.array([0.7, 0.3])


def trainer(model: Path, data: list[DomainData], recipe: Recipe = RECIPE) -> Trainer:
    torch.manual_seed(0)
    return Trainer(load_model(str(model)), data, recipe, torch.device("cpu"))


def plain_nats(model: Path, tokens: np.ndarray, mask: np.ndarray) -> torch.Tensor:
    """One sample, no padding, the library's own full logits: nats of every token that carries
    loss.
    """
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    logits = reference(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0, :-1]
    nats = functional.cross_entropy(
        logits, torch.from_numpy(tokens[1:].astype(np.int64)), reduction="none"
    )
    return nats[torch.from_numpy(mask[1:].copy())]


def test_held_out_loss_is_the_plain_per_sample_loss(
    tiny_model: Path, data: list[DomainData]
) -> None:
    sums = trainer(tiny_model, data).held_out()
    for place, domain in enumerate(data):
        nats = torch.cat(
            [plain_nats(tiny_model, *domain.validation[i]) for i in range(len(domain.validation))]
        )
        assert sums.nats[place] == pytest.approx(nats.sum().item(), rel=1e-5)
        assert sums.count[place] == len(nats)


def test_the_parts_of_two_ranks_sum_to_the_whole(tiny_model: Path, data: list[DomainData]) -> None:
    whole = trainer(tiny_model, data).held_out()
    model = load_model(str(tiny_model))
    halves = []
    for rank in range(2):
        half = Trainer(model, data, RECIPE, torch.device("cpu"))
        half._layout = replace(half._layout, rank=rank, world=2)
        halves.append(half.held_out())
    np.testing.assert_allclose((halves[0] + halves[1]).nats, whole.nats, rtol=1e-6)
    np.testing.assert_array_equal((halves[0] + halves[1]).count, whole.count)


def test_a_step_follows_the_gradient_of_the_mean_over_all_response_tokens(
    tiny_model: Path, data: list[DomainData]
) -> None:
    plain = RECIPE.__class__(
        **{**RECIPE.__dict__, "max_grad_norm": 0.0, "warmup": 0.0, "weight_decay": 0.0}
    )
    ours = trainer(tiny_model, data, plain)
    twin = trainer(tiny_model, data, plain)
    domain, index = twin.sampler.next_batch(SHARES)
    ours.step(SHARES)

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    nats = []
    for d, i in zip(domain, index, strict=True):
        tokens, mask = data[d].train[i]
        logits = model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0, :-1]
        each = functional.cross_entropy(
            logits, torch.from_numpy(tokens[1:].astype(np.int64)), reduction="none"
        )
        nats.append(each[torch.from_numpy(mask[1:].copy())])
    torch.cat(nats).mean().backward()
    optimizer = torch.optim.AdamW(model.parameters(), lr=plain.learning_rate, weight_decay=0.0)
    optimizer.step()
    for expected, got in zip(model.parameters(), ours.model.parameters(), strict=True):
        # Adam's first step is lr · sign(g): entries whose gradient is rounding noise may differ in
        # sign.
        clear = expected.grad.abs() > 1e-6
        torch.testing.assert_close(got[clear], expected[clear], atol=1e-5, rtol=1e-4)
    train, samples, tokens = ours.take_counts()
    assert train.nats.sum() == pytest.approx(torch.cat(nats).sum().item(), rel=1e-5)
    assert samples.sum() == 6
    assert tokens.sum() == train.count.sum() == sum(len(each) for each in nats)


def test_a_loaded_tuner_goes_on_bit_for_bit(
    tiny_model: Path, data: list[DomainData], tmp_path: Path
) -> None:
    whole, first = trainer(tiny_model, data), trainer(tiny_model, data)
    for _ in range(8):
        whole.step(SHARES)
    for _ in range(3):
        first.step(SHARES)
    saved = Checkpoints(first).save(tmp_path / "checkpoint")
    first.step(SHARES)  # while it is being written
    saved.result()
    second = Trainer(load_model(str(tiny_model)), data, RECIPE, torch.device("cpu"))
    Checkpoints(second).load(tmp_path / "checkpoint")
    assert second.steps_done == 3
    for _ in range(5):
        second.step(SHARES)
    for expected, got in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(expected, got)
    np.testing.assert_array_equal(whole.take_counts()[0].nats, second.take_counts()[0].nats)


def test_losses_per_byte_divide_by_bytes(tiny_model: Path, data: list[DomainData]) -> None:
    per_byte = RECIPE.__class__(**{**RECIPE.__dict__, "unit": "nats/byte"})
    sums = trainer(tiny_model, data, per_byte).held_out()
    assert sums.count.tolist() == [domain.validation.response_bytes.sum() for domain in data]


def test_a_batch_smaller_than_the_number_of_workers_is_refused(
    tiny_model: Path, data: list[DomainData]
) -> None:
    with pytest.raises(
        UserError, match=r"training\.batch_size: 6 samples cannot be spread over 7 workers"
    ):
        Trainer(load_model(str(tiny_model)), data, RECIPE, torch.device("cpu"), rank=0, world=7)


def test_bf16_forward_passes_leave_the_weights_in_float32(
    tiny_model: Path, data: list[DomainData]
) -> None:
    exact, half = (
        trainer(tiny_model, data),
        Trainer(
            load_model(str(tiny_model)),
            data,
            RECIPE,
            torch.device("cpu"),
            execution=Execution(precision="bf16"),
        ),
    )
    for _ in range(4):
        wanted, found = exact.step(SHARES), half.step(SHARES)
        assert found == pytest.approx(wanted, rel=0.02)  # bf16 has eight bits
        assert found != wanted
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.float32}


@pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on CPUs"
)
@pytest.mark.compiler
def test_compiled_blocks_give_the_same_losses(tiny_model: Path, data: list[DomainData]) -> None:
    plain, compiled = (
        trainer(tiny_model, data),
        Trainer(
            load_model(str(tiny_model)),
            data,
            RECIPE,
            torch.device("cpu"),
            execution=Execution(compile=True),
        ),
    )
    assert compiled.step(SHARES) == pytest.approx(plain.step(SHARES), rel=1e-5)
    assert compiled.step(SHARES) == pytest.approx(plain.step(SHARES), rel=1e-5)


def test_batches_that_a_thread_makes_ahead_are_the_same(
    tiny_model: Path, data: list[DomainData]
) -> None:
    """As on a GPU, where it begins with the next step's batches while the device works on this
    one's.
    """
    plain, ahead = trainer(tiny_model, data), trainer(tiny_model, data)
    ahead._thread = ThreadPoolExecutor(1)
    for number, shares in enumerate((SHARES, SHARES, SHARES, SHARES[::-1])):
        assert ahead.step(shares, ahead=number < 2) == plain.step(shares)
    assert ahead.sampler.state_dict() == plain.sampler.state_dict()
    assert all(
        torch.equal(one, other)
        for one, other in zip(plain.model.parameters(), ahead.model.parameters(), strict=True)
    )


def test_a_sampler_that_has_no_more_samples_is_final(
    tiny_model: Path, data: list[DomainData]
) -> None:
    short = trainer(tiny_model, data, replace(RECIPE, steps=100, max_passes=0.2))
    with pytest.raises(
        Unrecoverable,
        match=r"^step \d+: max_passes: every domain with a share has reached 0\.2 passes",
    ):
        for _ in range(100):
            short.step(SHARES)


def test_a_batch_that_is_no_number_is_left_out_and_told_but_not_too_many_in_a_row(
    tiny_model: Path, data: list[DomainData]
) -> None:
    one = trainer(tiny_model, data, replace(RECIPE, on_nonfinite="skip", max_skipped=2))
    one.step(SHARES)
    healthy = {name: values.clone() for name, values in one.model.state_dict().items()}
    with torch.no_grad():
        one.model.get_decoder().norm.weight[0] = torch.nan
    for number in (2, 3):
        one.step(SHARES)
        assert one.last is not None and one.last.skipped is not None and one.last.count.sum() == 0
        assert one.last.skipped.startswith(
            f"step {number}: the loss is not finite on code: code.jsonl:"
        )
        assert one.steps_done == one.sampler.step == number
    one.model.load_state_dict(healthy)
    one.step(SHARES)
    assert one.last is not None and one.last.skipped is None and np.isfinite(one.last.loss)
    assert np.isfinite(one.train_loss.nats).all()
    with torch.no_grad():
        one.model.get_decoder().norm.weight[0] = torch.nan
    one.step(SHARES)
    one.step(SHARES)
    with pytest.raises(
        Unrecoverable, match=r"step 7: .*; 2 batches before it were left out already"
    ):
        one.step(SHARES)


def test_a_setting_that_this_way_of_training_would_not_heed_is_refused() -> None:
    with pytest.raises(
        UserError,
        match=r"training\.cpu_offload=True: this run uses ddp, .*write training\.parallel=fsdp",
    ):
        Execution(cpu_offload=True).kind("cpu", 2)
    with pytest.raises(
        UserError, match=r"training\.shard_over: 4 workers cannot be divided into groups of 3"
    ):
        Execution(parallel="fsdp", shard_over=3).kind("cpu", 4)
    assert [Execution().kind(kind, world) for kind in ("cpu", "cuda") for world in (1, 2)] == [
        "single",
        "ddp",
        "fsdp",
        "fsdp",
    ]


def test_a_stage_goes_on_with_optimizer_and_schedule_or_begins_anew(
    tiny_model: Path, data: list[DomainData]
) -> None:
    """Two stages of 3 and 5 steps on one schedule: its rates are half a cosine over 8 steps,
    whatever stage they are in.
    """
    first, second = (replace(RECIPE, steps=steps, scheduled=8, warmup=0.0) for steps in (3, 5))
    one, rates = trainer(tiny_model, data, first), []
    for number in range(8):
        if number == 3:
            optimizer = one.optimizer
            one.begin(second, fresh=False)
            assert one.optimizer is optimizer and one.sampler.step == 0
        one.step(SHARES)
        assert one.last is not None
        rates.append(one.last.rate)
    np.testing.assert_allclose(
        rates, [RECIPE.learning_rate * (1 + np.cos(np.pi * number / 8)) / 2 for number in range(8)]
    )
    one.begin(second)
    assert one.optimizer is not optimizer and not one.optimizer.state


@pytest.mark.parametrize("counted", ["response", "all"])
def test_shares_of_tokens_are_those_of_what_trains_and_go_on_exactly(
    tiny_model: Path, data: list[DomainData], tmp_path: Path, counted: str
) -> None:
    recipe = replace(RECIPE, counted=counted, orders=("length", "random"))
    column = "response_tokens" if counted == "response" else "lengths"
    longest = max(int(getattr(domain.train, column).max()) for domain in data)
    one, given = trainer(tiny_model, data, recipe), np.zeros(2)
    first = one._draw(SHARES).samples
    lengths = data[0].train.lengths[np.sort(first.index[first.domain == 0])]
    assert max(lengths) <= np.sort(data[0].train.lengths)[: len(lengths)].max()
    one = trainer(tiny_model, data, recipe)
    for number in range(6):
        if number == 3:
            Checkpoints(one).save(tmp_path / "checkpoint").result()
            one = trainer(tiny_model, data, recipe)
            Checkpoints(one).load(tmp_path / "checkpoint")
        drawn = one._draw(SHARES).samples
        assert len(drawn) == recipe.batch_size
        given += np.bincount(drawn.domain, getattr(drawn, column), 2)
        assert abs(SHARES * given.sum() - given).max() <= longest
        one.steps_done += 1
    one = trainer(tiny_model, data, recipe)
    one.step(SHARES)
    tokens = one.last.responses if counted == "response" else one.last.lengths
    assert one.take_counts()[2].sum() == tokens.sum(), "the log has what shares count"
