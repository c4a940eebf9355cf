"""The importance of units, against gates that are taken one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from small_qwen import PROJECTIONS, qwen
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from versatune_ray.training.importance import normalised, unit_importance


class Scaled(torch.nn.Module):
    """One unit of a projection put out (or a head taken in) ``gate`` times, written down once more
    by hand.
    """

    def __init__(self, inner: torch.nn.Module, unit: int, gate: torch.Tensor, head_dim: int = 0):
        super().__init__()
        self.inner, self.unit, self.gate, self.head_dim = inner, unit, gate, head_dim

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if self.head_dim:
            parts = list(values.split(self.head_dim, dim=-1))
            parts[self.unit] = parts[self.unit] * self.gate
            return self.inner(torch.cat(parts, dim=-1))  # type: ignore[no-any-return]
        put_out = self.inner(values)
        return put_out * torch.where(torch.arange(put_out.shape[-1]) == self.unit, self.gate, 1.0)  # type: ignore[no-any-return]


def gradient_of_one_gate(
    model: PreTrainedModel, name: str, unit: int, batches: Any, seed: int, head_dim: int = 0
) -> float:
    parent, _, child = name.rpartition(".")
    owner = model.get_submodule(parent)
    inner, total = getattr(owner, child), 0.0
    for number, records in enumerate(batches):
        gate = torch.ones((), requires_grad=True)
        setattr(owner, child, Scaled(inner, unit, gate, head_dim))
        torch.manual_seed(seed + number)
        width = max(map(len, records))
        tokens = torch.tensor([[*record, *[0] * (width - len(record))] for record in records])
        real = torch.tensor(
            [[1] * len(record) + [0] * (width - len(record)) for record in records]
        ).bool()
        first, second = (
            functional.log_softmax(model(input_ids=tokens).logits[real], -1) for _ in range(2)
        )
        loss = 0.1 * (second.exp() * (second - first)).sum()
        total += float(torch.autograd.grad(loss, gate)[0])
        setattr(owner, child, inner)
    return total


def test_importance_is_that_of_gates_taken_one_by_one() -> None:
    model = qwen()
    rng = np.random.default_rng(0)
    batches = [
        [rng.integers(3, 64, size).astype(np.int64) for size in sizes] for sizes in ((5, 9), (7,))
    ]
    found = unit_importance(model, batches, dropout=0.1, seed=7)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    model.train()
    where = "model.layers.2"
    for projection in ("mlp.up_proj", "mlp.gate_proj", "mlp.down_proj", "self_attn.o_proj"):
        name = f"{where}.{projection}"
        units = model.get_submodule(name).out_features
        x = torch.tensor(
            [gradient_of_one_gate(model, name, unit, batches, 7) for unit in range(units)]
        )  # type: ignore[arg-type]
        expected = torch.tanh((x - x.mean()) / x.std()).abs()
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-5)
    heads = torch.tensor(
        [
            gradient_of_one_gate(model, f"{where}.self_attn.o_proj", head, batches, 7, head_dim=8)
            for head in range(4)
        ]
    )
    expected = torch.tanh((heads - heads.mean()) / heads.std()).abs()
    torch.testing.assert_close(
        found[f"{where}.self_attn.q_proj"], expected.repeat_interleave(8), rtol=0, atol=1e-5
    )
    shared = torch.stack([expected[:2].max(), expected[2:].max()]).repeat_interleave(8)
    for kind in ("k_proj", "v_proj"):
        torch.testing.assert_close(found[f"{where}.self_attn.{kind}"], shared, rtol=0, atol=1e-5)


def test_measuring_importance_leaves_the_model_as_it_was() -> None:
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=16,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
    )
    model.eval()
    before = {name: values.clone() for name, values in model.state_dict().items()}
    first, second = (
        unit_importance(model, [[np.arange(5)]], dropout=0.1, seed=0) for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first), "seeded"
    assert not model.training and all(parameter.requires_grad for parameter in model.parameters())
    assert model.model.layers[0].self_attn.attention_dropout == 0.0
    assert all(torch.equal(before[name], values) for name, values in model.state_dict().items())
    assert set(first) == {f"model.layers.0.{name}" for name in PROJECTIONS}
    assert all(bool(((values >= 0) & (values <= 1)).all()) for values in first.values())


def test_units_that_are_all_alike_are_not_important() -> None:
    assert normalised(torch.tensor([2.0, 2.0])).tolist() == [0, 0] and normalised(
        torch.tensor([2.0])
    ).tolist() == [0]
