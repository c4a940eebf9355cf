"""Which parameters move: layers by range or number, parts by name; the rest is frozen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_qwen import CPU, EVEN, RECIPE, qwen

from versatune_ray.domains import DomainData
from versatune_ray.errors import UserError
from versatune_ray.settings import Lora, Trainable, Training
from versatune_ray.settings.cofitune import layer_range
from versatune_ray.settings.recipe import Execution
from versatune_ray.training.checkpoint import Checkpoints
from versatune_ray.training.export import export
from versatune_ray.training.loss import ResponseLoss
from versatune_ray.training.model import check_parts, check_trained, load_model, with_frozen
from versatune_ray.training.parallel import Parallel
from versatune_ray.training.trainable import freeze
from versatune_ray.training.trainer import Trainer


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
    model = str(tiny_model)
    check_parts(model, [Trainable(layers="50%-100%"), Trainable(modules=["ffn"])])
    check_trained(model, Training(trainable=Trainable(layers="50%-100%")), ups)
    with pytest.raises(
        UserError,
        match="'2' holds layers beyond "
        r"the last of a model that has 2",
    ):
        check_parts(model, [Trainable(), Trainable(layers="2")])
    with pytest.raises(UserError, match=r"the model has no layers\.2\.mlp\.up_proj"):
        beyond = {"model.layers.2.mlp.up_proj": torch.zeros(rows)}
        check_trained(model, Training(), ups | beyond)
    with pytest.raises(UserError, match="no-such-folder/model: no such folder"):
        check_parts("no-such-folder/model", [Trainable(layers="0")])
    with pytest.raises(UserError, match=r"training\.lora\.targets: .*q_porj"):
        check_trained(model, Training(lora=Lora(rank=4, targets=["q_porj"])), {})


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
