"""Nats of response tokens against a plain computation: families, attention over packed rows,
chunked logits, gradients, what is not finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_samples, write_store
from short_recipe import RECIPE
from torch.nn import functional
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from versatune_ray.domains import DomainData, DomainPaths, load_domains
from versatune_ray.errors import UserError
from versatune_ray.settings import Data
from versatune_ray.settings.recipe import Execution
from versatune_ray.training import loss as loss_module
from versatune_ray.training.attention import choose
from versatune_ray.training.gradients import measure
from versatune_ray.training.model import load_model
from versatune_ray.training.step import Unrecoverable
from versatune_ray.training.trainer import Trainer

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
FAMILIES = {
    "llama": LlamaConfig(**SHAPE, num_key_value_heads=2),
    "qwen2": Qwen2Config(**SHAPE, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SHAPE, num_key_value_heads=2, head_dim=16),
    "mistral": MistralConfig(**SHAPE, num_key_value_heads=2, sliding_window=6),
}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[DomainData]:
    """Two domains; masks with several stretches of response, as conversations of several turns
    have.
    """
    folder = tmp_path_factory.mktemp("stores")
    rng = np.random.default_rng(0)
    paths = {}
    for seed, name in enumerate(("law", "code")):
        stores = [
            write_store(folder / f"{name}{part}", random_samples(seed + part * 9, 12))
            for part in range(2)
        ]
        for store in stores:
            offsets = np.load(store / "offsets.npy")
            bits = np.load(store / "00000.mask.npy")
            mask = np.unpackbits(bits, count=offsets[-1], bitorder="little").astype(np.bool_)
            mask &= rng.random(len(mask)) < 0.7
            mask[offsets[1:] - 1] = True
            np.save(store / "00000.mask.npy", np.packbits(mask, bitorder="little"))
            np.save(
                store / "response_tokens.npy", np.add.reduceat(mask.astype(np.int64), offsets[:-1])
            )
        paths[name] = DomainPaths(*stores)
    return list(load_domains(paths, Data()).values())


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / request.param
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(FAMILIES[request.param]).save_pretrained(folder)
    return folder


def plain(model: Path, records: Sequence[tuple[Any, Any]]) -> tuple[torch.Tensor, Any]:
    """Nats of the tokens that carry loss, and the model: sample by sample, no padding, eager
    attention, the library's own logits.
    """
    network = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, attn_implementation="eager"
    )
    found = []
    for tokens, mask in records:
        logits = network(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0, :-1]
        nats = functional.cross_entropy(
            logits, torch.from_numpy(tokens[1:].astype(np.int64)), reduction="none"
        )
        found.append(nats[torch.from_numpy(mask[1:].copy())])
    return torch.cat(found), network


@pytest.mark.parametrize("attention", ["padded", "sdpa", "flex"])
def test_every_attention_gives_the_plain_loss(
    model: Path, data: list[DomainData], attention: Any
) -> None:
    trainer = Trainer(load_model(str(model), attention=attention), data, RECIPE, CPU)
    trainer.attention = attention  # flex has no backward pass on a CPU, and is refused there
    sums = trainer.held_out()
    for place, domain in enumerate(data):
        nats, _ = plain(model, [domain.validation[i] for i in range(len(domain.validation))])
        assert sums.nats[place] == pytest.approx(nats.sum().item(), rel=1e-5)
        assert sums.count[place] == len(nats)


@pytest.mark.parametrize("attention", ["padded", "sdpa"])
def test_every_attention_gives_the_plain_gradient(
    model: Path, data: list[DomainData], attention: Any
) -> None:
    trainer = Trainer(
        load_model(str(model), attention=attention),
        data,
        RECIPE,
        CPU,
        execution=Execution(attention=attention),
    )
    twin = Trainer(load_model(str(model)), data, RECIPE, CPU)
    domain, index = twin.sampler.next_batch(np.array([0.5, 0.5]))
    nats, network = plain(model, [data[d].train[i] for d, i in zip(domain, index, strict=True)])
    nats.mean().backward()
    kept: dict[str, torch.Tensor] = {}
    trainer.optimizer.zero_grad = lambda set_to_none=True: kept.update(  # type: ignore[method-assign]
        {name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters()}
    )
    trainer.step(np.array([0.5, 0.5]))
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(kept[name], parameter.grad, atol=1e-6, rtol=1e-4)


def test_products_of_gradients_are_those_of_each_domains_plain_gradient(
    model: Path, data: list[DomainData]
) -> None:
    trainer = Trainer(load_model(str(model)), data, RECIPE, CPU)
    twin = Trainer(load_model(str(model)), data, RECIPE, CPU)
    found = measure(trainer, 1000).products
    gradients = []
    for domain in data:
        nats, network = plain(model, [domain.train[i] for i in range(len(domain.train))])
        nats.mean().backward()
        gradients.append(
            torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
        )
    np.testing.assert_allclose(
        found,
        [[float(one @ other) for other in gradients] for one in gradients],
        rtol=1e-4,
        atol=1e-6,
    )
    few = measure(trainer, 2).products
    np.testing.assert_array_equal(few, measure(trainer, 2).products)
    assert abs(few / found - 1).max() > 1e-3, "other records, other gradients"
    assert trainer.step(np.array([0.5, 0.5])) == twin.step(np.array([0.5, 0.5])), (
        "neither sampler nor gradients are moved"
    )


def test_variances_and_the_held_out_gradient_are_those_of_plain_gradients(
    model: Path, data: list[DomainData]
) -> None:
    trainer = Trainer(load_model(str(model)), data, RECIPE, CPU)

    def gradient(records: Any, rows: Any) -> torch.Tensor:
        nats, network = plain(model, [records[int(i)] for i in rows])
        nats.mean().backward()
        return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])

    found = measure(trainer, 12, variances=True, held_out=True)
    assert found.products is not None and found.variances is not None
    assert found.held_out is not None
    held_out = sum(
        gradient(domain.validation, range(len(domain.validation))) for domain in data
    ) / len(data)
    for number, domain in enumerate(data):
        draw = np.random.default_rng([RECIPE.seed, 0, number])
        count = min(12, len(domain.train))
        rows = draw.choice(len(domain.train), count, replace=False)
        whole = gradient(domain.train, rows)
        one, other = (gradient(domain.train, half) for half in np.array_split(rows, 2))
        apart = float(((one - other) ** 2).sum())
        # σ²·(1/n + 1/m) is what two means over n and m records differ by
        weight = 1 / (count - count // 2) + 1 / (count // 2)
        assert found.variances[number] == pytest.approx(apart / weight, rel=1e-3)
        # the noise of one half is not that of the other
        assert found.products[number, number] == pytest.approx(
            max(float(one @ other), 0), rel=1e-3, abs=1e-6
        )
        assert all(len(each.validation) <= 12 for each in data)
        assert found.held_out[number] == pytest.approx(float(whole @ held_out), rel=1e-3)


@pytest.mark.parametrize("correction", [0.5, 1.0])
def test_a_length_correction_weighs_each_domains_own_mean(
    model: Path, data: list[DomainData], correction: float
) -> None:
    trainer = Trainer(
        load_model(str(model)), data, replace(RECIPE, length_correction=correction), CPU
    )
    twin = Trainer(load_model(str(model)), data, RECIPE, CPU)
    shares = np.array([2 / 3, 1 / 3])
    domain, index = twin.sampler.next_batch(shares)
    assert np.bincount(domain).tolist() == [4, 2]
    gradients, tokens = [], []
    for place in (0, 1):
        nats, network = plain(model, [data[place].train[int(i)] for i in index[domain == place]])
        nats.mean().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
        tokens.append(len(nats))
    weights = np.array([4, 2]) ** correction * np.array(tokens) ** (1 - correction)
    first, second = weights / weights.sum()
    kept: list[torch.Tensor] = []
    trainer.optimizer.zero_grad = lambda set_to_none=True: kept.extend(  # type: ignore[method-assign]
        parameter.grad.clone() for parameter in trainer.model.parameters()
    )
    trainer.step(shares)
    for found, one, other in zip(kept, *gradients, strict=True):
        torch.testing.assert_close(found, first * one + second * other, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_the_loss_and_its_gradient_are_those_of_whole_logits(tied: bool) -> None:
    """A vocabulary of 500; 40 targets in chunks of 16; the gradient that the chunks add up against
    autograd through one cross-entropy.
    """
    config = LlamaConfig(**(SHAPE | {"vocab_size": 500}), tie_word_embeddings=tied)
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(config)
    tokens, kept = torch.randint(0, 500, (4, 12)), torch.arange(40)
    targets, weights = torch.randint(0, 500, (40,)), torch.linspace(0, 1, 40)
    plain = functional.cross_entropy(
        network(input_ids=tokens).logits.flatten(0, 1)[kept], targets, reduction="none"
    )
    (plain * weights).sum().backward()
    wanted = [parameter.grad.clone() for parameter in network.parameters()]
    network.zero_grad()
    module = loss_module.ResponseLoss(network, rows=16)
    loss, nats = module(tokens, kept, targets, weights)
    (3 * loss).backward()
    torch.testing.assert_close(nats, plain.detach(), atol=1e-5, rtol=1e-5)
    assert not nats.requires_grad and loss.item() == pytest.approx(
        float((plain * weights).sum()), rel=1e-5
    )
    for parameter, gradient in zip(network.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, 3 * gradient, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(module(tokens, kept, targets), nats)


@pytest.mark.parametrize("rows", [8, 64])
def test_nats_are_not_rounded_to_the_precision_of_the_forward_pass(rows: int) -> None:
    """Of bf16 logits the loss is computed in float32, whatever the chunk: it is that of the same
    logits, exactly.
    """
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 50, bias=False, dtype=torch.bfloat16)
    hidden, targets = torch.randn(40, 16, dtype=torch.bfloat16), torch.randint(0, 50, (40,))
    wanted = (
        torch.logsumexp((hidden @ head.weight.T).double(), -1)
        - (hidden @ head.weight.T).double().gather(1, targets[:, None])[:, 0]
    )
    _, nats = loss_module._head_loss(
        head, loss_module.nats_and_gradient, rows, hidden, targets, torch.ones(40)
    )
    assert nats.dtype == torch.float32
    torch.testing.assert_close(nats.double(), wanted, rtol=1e-6, atol=1e-6)


def test_what_has_no_backward_pass_here_is_refused() -> None:
    with pytest.raises(UserError, match=r"training\.attention=flex: needs a GPU"):
        choose("flex", CPU, bf16=True)
    gpu = torch.device("cuda")
    with pytest.raises(
        UserError, match=r"training\.attention=varlen: flash attention knows no float32"
    ):
        choose("varlen", gpu, bf16=False)
    assert (choose("auto", CPU, True), choose("auto", gpu, True), choose("auto", gpu, False)) == (
        "padded",
        "varlen",
        "sdpa",
    )


def test_a_loss_that_is_no_number_names_step_domain_and_record(tmp_path: Path) -> None:
    """One embedding is NaN; one record of the second domain has its token."""
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(FAMILIES["llama"])
    network.get_input_embeddings().weight.data[63] = float("nan")
    network.save_pretrained(tmp_path / "model")
    good = [([3, 4, 5, 6], 1)] * 8
    paths = {
        "law": DomainPaths(
            write_store(tmp_path / "law", good), write_store(tmp_path / "law-v", good[:2])
        ),
        "code": DomainPaths(
            write_store(tmp_path / "code", [*good[:5], ([3, 63, 5], 1), *good[5:]]),
            write_store(tmp_path / "code-v", good[:2]),
        ),
    }
    domains = list(load_domains(paths, Data()).values())
    place = next(i for i in range(len(domains[1].train)) if 63 in domains[1].train[i][0])
    trainer = Trainer(load_model(str(tmp_path / "model")), domains, RECIPE, CPU)
    with pytest.raises(
        Unrecoverable,
        match=rf"step \d: the loss is not finite on code: {domains[1].train.location(place)}; "
        r"the last checkpoint",
    ) as caught:
        for _ in range(4):
            before = [parameter.clone() for parameter in trainer.model.parameters()]
            trainer.step(np.array([0.4, 0.6]))
    assert f"step {trainer.steps_done + 1}:" in str(caught.value)
    for one, other in zip(before, trainer.model.parameters(), strict=True):
        assert torch.equal(one.nan_to_num(), other.nan_to_num())
