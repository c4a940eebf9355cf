"""Soft masks: how far each unit moves, what a norm counts, which importance is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_qwen import CPU, EVEN, PROJECTIONS, RECIPE, qwen

from versatune_ray.domains import DomainData
from versatune_ray.errors import UserError
from versatune_ray.settings import Lora, Trainable, Training
from versatune_ray.settings.recipe import Recipe
from versatune_ray.training.model import with_frozen
from versatune_ray.training.trainable import read_importance
from versatune_ray.training.trainer import Trainer


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
