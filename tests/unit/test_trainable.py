"""Which parameters move, and how far: CoFiTune's frozen parts and soft masks, against what every
single unit does.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_samples, write_store
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from versatune_ray.domains import DomainData, DomainPaths, load_domains
from versatune_ray.errors import UserError
from versatune_ray.settings import Data, Lora, Trainable, Training
from versatune_ray.settings.cofitune import layer_range
from versatune_ray.settings.recipe import Execution, Recipe
from versatune_ray.training.checkpoint import Checkpoints
from versatune_ray.training.export import export
from versatune_ray.training.importance import normalised, unit_importance
from versatune_ray.training.loss import ResponseLoss
from versatune_ray.training.model import check_parts, load_model, with_frozen
from versatune_ray.training.parallel import Parallel
from versatune_ray.training.trainable import freeze, read_importance
from versatune_ray.training.trainer import Trainer

CPU = torch.device("cpu")
EVEN = np.array([0.5, 0.5])
RECIPE = Recipe(
    60,
    batch_size=4,
    micro_batch_tokens=200,
    learning_rate=1e-2,
    warmup=0.1,
    weight_decay=0.1,
    max_grad_norm=1.0,
    seed=3,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[DomainData]:
    folder = tmp_path_factory.mktemp("stores")
    paths = {
        name: DomainPaths(
            write_store(folder / name, random_samples(seed, 20)),
            write_store(folder / f"{name}-v", random_samples(seed + 9, 5)),
        )
        for seed, name in enumerate(("law", "code"))
    }
    return list(load_domains(paths, Data()).values())


def qwen() -> PreTrainedModel:
    """Four query heads that share two key-value heads, and biases on all three."""
    torch.manual_seed(1)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=64, tie_word_embeddings=False, initializer_range=0.1,
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "depth", "layers"),
    [
        ("25%-50%", 32, range(8, 16)),
        ("25%-50%", 4, range(1, 2)),
        ("0%-25%", 6, range(2)),  # a quarter of 6 is 1.5, rounded half up to 2
        ("25%-50%", 6, range(2, 3)),
        ("0-1", 4, range(2)),
        ("3", 4, range(3, 4)),
    ],
)
def test_a_range_of_layers(text: str, depth: int, layers: range) -> None:
    assert layer_range(text, depth) == layers


def test_quartiles_share_out_any_depth() -> None:
    for depth in range(4, 100):
        found = [
            layer for low in (0, 25, 50, 75) for layer in layer_range(f"{low}%-{low + 25}%", depth)
        ]
        assert found == list(range(depth))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("half", "layers as 25%-50% of the depth, or 4-7 by number from 0"),
        ("-1", "layers as 25%-50% of the depth, or 4-7 by number from 0"),
        ("50%-25%", "the first end has to be below the second, and that at most 100%"),
        ("75%-125%", "the first end has to be below the second, and that at most 100%"),
        ("3-2", "the first number is above the second"),
        (
            "3-9",
            "'3-9' holds layers beyond "
            r"the last of a model that has 4",
        ),
        ("0%-10%", "'0%-10%' holds no layer of a model that has 4"),
    ],
)
def test_a_range_without_layers_is_refused(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
        layer_range(text, 4)


def test_what_is_not_chosen_is_frozen() -> None:
    model = qwen()
    freeze(model, Trainable(layers="25%-75%", modules=["q_proj", "ffn"]))
    moving = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    projections = (
        "self_attn.q_proj.weight",
        "self_attn.q_proj.bias",
        "mlp.gate_proj.weight",
        "mlp.up_proj.weight",
        "mlp.down_proj.weight",
    )
    assert moving == {f"model.layers.{layer}.{name}" for layer in (1, 2) for name in projections}
    model = qwen()
    freeze(model, Trainable(layers="3"))
    moving = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert moving == {
        name for name, _ in model.named_parameters() if name.startswith("model.layers.3.")
    }
    with pytest.raises(
        UserError,
        match=r"training\.trainable\.modules: the model has no up_porj; "
        r"valid: attention, ffn, down_proj",
    ):
        freeze(qwen(), Trainable(modules=["up_porj"]))
    with pytest.raises(
        UserError,
        match=r"training\.trainable\.layers: '4-5' holds layers beyond "
        r"the last of a model that has 4",
    ):
        freeze(qwen(), Trainable(layers="4-5"))


def test_parts_are_checked_by_the_shape_of_a_model_alone(tiny_model: Path) -> None:
    (rows,) = {
        module.out_features
        for name, module in load_model(str(tiny_model)).named_modules()
        if name.endswith("up_proj")
    }
    assert isinstance(rows, int)
    ups = {f"model.layers.{layer}.mlp.up_proj": torch.zeros(rows) for layer in range(2)}
    check_parts(str(tiny_model), [Trainable(layers="50%-100%"), Trainable(modules=["ffn"])], ups)
    with pytest.raises(
        UserError,
        match="'2' holds layers beyond "
        r"the last of a model that has 2",
    ):
        check_parts(str(tiny_model), [Trainable(), Trainable(layers="2")], {})
    with pytest.raises(UserError, match=r"the model has no layers\.2\.mlp\.up_proj"):
        check_parts(str(tiny_model), [], ups | {"model.layers.2.mlp.up_proj": torch.zeros(rows)})
    with pytest.raises(UserError, match="no-such-folder/model: no such folder"):
        check_parts("no-such-folder/model", [Trainable(layers="0")], {})


def test_recomputing_stops_below_the_first_layer_that_trains() -> None:
    found = []
    for recomputes in (False, True):
        model = with_frozen(qwen(), Training(trainable=Trainable(layers="75%-100%")), 0)
        parallel = Parallel(
            ResponseLoss(model),
            Execution(activation_checkpointing="full" if recomputes else "none"),
            CPU,
            0,
            1,
        )
        reached: list[bool] = []
        model.model.layers[2].register_forward_hook(
            lambda _module, _inputs, output, to=reached: to.append(output.requires_grad)
        )
        inputs = {
            "tokens": torch.arange(8)[None],
            "kept": torch.arange(7),
            "targets": torch.arange(1, 8),
            "weights": torch.ones(7),
        }
        parallel.module.train()
        parallel.forward(inputs, train=True)[0].backward()
        assert reached == [False]
        found.append(
            {
                name: values.grad
                for name, values in model.named_parameters()
                if values.grad is not None
            }
        )
    assert found[0].keys() == found[1].keys() and all(
        torch.equal(found[0][name], found[1][name]) for name in found[0]
    )  # type: ignore[arg-type]


def test_only_what_trains_is_saved_and_the_export_is_whole(
    tiny_model: Path, data: list[DomainData], tmp_path: Path
) -> None:
    training = Training(trainable=Trainable(layers="1", modules=["down_proj"]))
    trainer = Trainer(with_frozen(load_model(str(tiny_model)), training, 0), data, RECIPE, CPU)
    for _ in range(3):
        trainer.step(EVEN)
    checkpoints = Checkpoints(trainer)
    checkpoints.save(tmp_path / "saved").result()
    stored = {
        name for file in (tmp_path / "saved").glob("*.safetensors") for name in load_file(file)
    }
    assert stored and all("layers.1.mlp.down_proj" in name for name in stored)
    assert len(trainer.optimizer.state) == 1
    export(trainer.model, checkpoints.weights(), tmp_path / "out", str(tiny_model), False, training)
    before, after = (load_model(str(path)).state_dict() for path in (tiny_model, tmp_path / "out"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"model.layers.1.mlp.down_proj.weight"}
    assert torch.equal(
        after["model.layers.1.mlp.down_proj.weight"],
        trainer.model.state_dict()["model.layers.1.mlp.down_proj.weight"],
    )


PROJECTIONS = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)


def masked(value: float, every: int = 2) -> dict[str, torch.Tensor]:
    """Importance ``value`` of every second unit of every projection, 0 of the others."""
    rows = {
        name: module.out_features
        for name, module in qwen().named_modules()
        if name.endswith("_proj")
    }
    return {name: torch.arange(count) % every * value for name, count in rows.items()}


def trained(
    data: list[DomainData], importance: dict[str, torch.Tensor], steps: int, recipe: Recipe = RECIPE
) -> dict[str, torch.Tensor]:
    trainer = Trainer(qwen(), data, recipe, CPU, importance=importance)
    for _ in range(steps):
        trainer.step(EVEN)
    return {name: values.detach().clone() for name, values in trainer.model.state_dict().items()}


def test_a_mask_of_1_keeps_a_unit_bit_for_bit_and_one_of_0_changes_nothing(
    data: list[DomainData],
) -> None:
    start = qwen().state_dict()
    kept = trained(data, masked(1.0), 50)
    for layer in range(4):
        for projection in PROJECTIONS:
            for kind in ("weight", "bias"):
                name = f"model.layers.{layer}.{projection}.{kind}"
                if name in start:
                    assert torch.equal(kept[name][1::2], start[name][1::2]), name
                    if kind == "weight":
                        assert not (kept[name][0::2] == start[name][0::2]).all(1).any(), name
    free, unmasked = trained(data, masked(0.0), 50), trained(data, {}, 50)
    assert all(torch.equal(free[name], unmasked[name]) for name in free)


def test_a_mask_of_one_half_moves_a_unit_half_as_far(data: list[DomainData]) -> None:
    """Of one step, for later ones depend on where the first one led; weight decay is part of it."""
    # clipping goes by what may move, so it would differ
    unclipped = replace(RECIPE, max_grad_norm=0.0)
    start, half, whole = (
        qwen().state_dict(),
        trained(data, masked(0.5), 1, unclipped),
        trained(data, {}, 1, unclipped),
    )
    for layer in range(4):
        for projection in PROJECTIONS:
            name = f"model.layers.{layer}.{projection}.weight"
            far, near = whole[name] - start[name], half[name] - start[name]
            assert far.abs().max() > 1e-3
            torch.testing.assert_close(near[1::2], far[1::2] / 2, rtol=1e-3, atol=1e-7)
            assert torch.equal(near[0::2], far[0::2])


def test_the_norm_that_clips_counts_only_what_may_move(data: list[DomainData]) -> None:
    """Every second unit of all projections fixed: the norm is that of the other rows, of norms,
    embedding and biases.
    """
    recipe = replace(RECIPE, max_grad_norm=0.0)
    tuners = [
        Trainer(qwen(), data, recipe, CPU, importance=importance)
        for importance in (masked(1.0), masked(0.0), {})
    ]
    for one in tuners:
        one.optimizer.zero_grad = lambda **_: None  # type: ignore[method-assign, assignment]
        one.step(EVEN)
    squares = 0.0
    for name, parameter in tuners[2].model.named_parameters():
        assert parameter.grad is not None
        moving = parameter.grad[0::2] if "_proj." in name else parameter.grad
        squares += float(moving.double().square().sum())
    found = [one.last.norm for one in tuners if one.last is not None]
    assert found[0] == pytest.approx(squares**0.5, rel=1e-5)
    assert found[1] == found[2] > found[0]


def test_with_lora_the_rows_of_the_product_are_masked(data: list[DomainData]) -> None:
    importance = {name: rows for name, rows in masked(1.0).items() if name.endswith("up_proj")}
    model = with_frozen(
        qwen(),
        Training(
            lora=Lora(rank=2), trainable=Trainable(layers="1-2", modules=["up_proj", "v_proj"])
        ),
        0,
    )
    trainer = Trainer(model, data, RECIPE, CPU, importance=importance)
    for _ in range(5):
        trainer.step(EVEN)
    moved = {name: values for name, values in model.state_dict().items() if "lora_B" in name}
    assert len(moved) == 4
    for name, values in moved.items():
        assert values[0::2].abs().min(dim=1).values.max() > 0
        assert bool((values[1::2] == 0).all()) == ("up_proj" in name)


def test_importance_that_does_not_fit_is_refused(data: list[DomainData], tmp_path: Path) -> None:
    ups = {f"model.layers.{layer}.mlp.up_proj": torch.zeros(48) for layer in range(4)}
    frozen = with_frozen(qwen(), Training(trainable=Trainable(modules=["down_proj"])), 0)
    for model, importance, told in (
        (
            qwen(),
            ups | {"model.layers.0.mlp.up_proj": torch.zeros(3)},
            "layers.0.mlp.up_proj has 3 units in the file and 48 in the model",
        ),
        (
            qwen(),
            ups | {"model.layers.9.mlp.up_proj": torch.zeros(48)},
            "the model has no layers.9.mlp.up_proj; the files are of another",
        ),
        (
            qwen(),
            {name: ups[name] for name in list(ups)[1:]},
            "the files have no importance of layers.0.mlp.up_proj",
        ),
        (frozen, ups, "no parameter that trains has an importance"),
    ):
        with pytest.raises(UserError, match=told):
            Trainer(model, data, RECIPE, CPU, importance=importance)
    save_file({"up_proj": torch.tensor([0.5, float("nan")])}, tmp_path / "nan")
    with pytest.raises(UserError, match="up_proj is no list of numbers within 0 and 1"):
        read_importance([str(tmp_path / "nan")])
    (tmp_path / "bad").write_text("x")
    with pytest.raises(UserError, match=r"training\.soft_mask: .*bad: no file of unit importance"):
        read_importance([str(tmp_path / "bad")])
    for name, rows in (("one", [0.1, 0.9]), ("two", [0.5, 0.5]), ("three", [0.5])):
        save_file({"up_proj": torch.tensor(rows)}, tmp_path / name)
    merged = read_importance([str(tmp_path / "one"), str(tmp_path / "two")])
    assert merged["up_proj"].tolist() == pytest.approx([0.5, 0.9])
    with pytest.raises(UserError, match="up_proj has 1 units, and 2 in another file"):
        read_importance([str(tmp_path / "one"), str(tmp_path / "three")])


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
