"""The same run on one rank and on two, with DDP and FSDP2, packed and padded, with LoRA, across
checkpoints: the same numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import start_ranks
from ranks import CUT, STEPS, case, run_cases
from safetensors.torch import save_file
from tiny import random_llama, write_stores
from transformers import AutoModelForCausalLM, LlamaConfig

KINDS: dict[str, dict[str, Any]] = {
    "ddp": {"execution": {"parallel": "ddp"}},
    "fsdp": {"execution": {"parallel": "fsdp"}},
    "fsdp empty": {"execution": {"parallel": "fsdp"}, "empty": True},
    "fsdp in groups": {"execution": {"parallel": "fsdp", "shard_over": 1}, "empty": True},
    "fsdp whole gradients": {"execution": {"parallel": "fsdp", "no_sync": True}, "micro": 20},
    "fsdp recomputing": {"execution": {"parallel": "fsdp", "activation_checkpointing": "full"}},
    "fsdp packed": {"execution": {"parallel": "fsdp", "attention": "sdpa"}},
    "ddp packed": {"execution": {"parallel": "ddp", "attention": "sdpa"}},
    "fsdp accumulating": {"execution": {"parallel": "fsdp"}, "micro": 20},
    "ddp lora": {"execution": {"parallel": "ddp"}, "variant": "lora"},
    "fsdp lora": {"execution": {"parallel": "fsdp"}, "variant": "lora"},
    "fsdp lora empty": {"execution": {"parallel": "fsdp"}, "variant": "lora", "empty": True},
    "ddp masked": {"execution": {"parallel": "ddp"}, "variant": "masked"},
    "fsdp masked": {"execution": {"parallel": "fsdp"}, "variant": "masked"},
    "fsdp masked lora": {"execution": {"parallel": "fsdp"}, "variant": "masked lora"},
    "ddp kept": {"execution": {"parallel": "ddp"}, "variant": "kept"},
    "fsdp kept": {"execution": {"parallel": "fsdp"}, "variant": "kept"},
    "fsdp kept empty": {"execution": {"parallel": "fsdp"}, "variant": "kept", "empty": True},
    "ddp kept lora": {"execution": {"parallel": "ddp"}, "variant": "kept lora"},
    "fsdp kept lora": {"execution": {"parallel": "fsdp"}, "variant": "kept lora"},
}
TO_RESUME: dict[str, dict[str, Any]] = KINDS | {
    "fsdp 8bit": {"execution": {"parallel": "fsdp"}, "optimizer": "adamw_8bit"}
}
# what is saved and loaded is that of others: only the step on the way differs
RESUMED_ALIKE = [
    "fsdp whole gradients",
    "fsdp recomputing",
    "fsdp packed",
    "ddp packed",
    "fsdp accumulating",
    "fsdp lora",
    "fsdp masked",
]
# kinds whose parts are each in another
RARER = [
    "fsdp in groups",
    "fsdp whole gradients",
    "fsdp recomputing",
    "ddp packed",
    "fsdp lora",
    "ddp masked",
    "fsdp masked lora",
    "ddp kept",
    "fsdp kept empty",
    "ddp kept lora",
]
USUAL = [kind for kind in KINDS if kind not in RARER]


def marked(kinds: Iterable[str]) -> list[Any]:
    return [pytest.param(kind, marks=pytest.mark.slow) if kind in RARER else kind for kind in kinds]


def on_two(cases: dict[str, dict[str, Any]], file: Path) -> dict[str, list[dict[str, Any]]]:
    """Results of both ranks, by case and rank."""
    log = file.with_suffix(".log")
    statuses = start_ranks(run_cases, list(cases.values()), str(file), log=log)
    assert statuses == [0, 0], log.read_text()
    ranks = [json.loads(Path(f"{file}.{rank}").read_text()) for rank in range(2)]
    return {name: [rank[place] for rank in ranks] for place, name in enumerate(cases)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def common(folder: Path, tiny_model: Path) -> dict[str, Any]:
    paths = {
        name: list(map(str, pair))
        for name, pair in write_stores(folder, ("law", "code"), 30, 7).items()
    }
    units = {"self_attn.q_proj": 32, "mlp.up_proj": 64, "mlp.down_proj": 32}
    importance = {
        f"model.layers.{layer}.{name}": torch.linspace(0, 1, rows)
        for layer in range(2)
        for name, rows in units.items()
    }
    save_file(importance, folder / "importance.safetensors")
    return {
        "model": str(tiny_model),
        "paths": paths,
        "importance": str(folder / "importance.safetensors"),
    }


@pytest.fixture(scope="module")
def alone(
    common: dict[str, Any], folder: Path
) -> dict[str, tuple[dict[str, Any], dict[str, torch.Tensor]]]:
    """One rank, padded, without accumulation: full fine-tuning, LoRA, and each with soft masks on a
    part of the model, or held to the base.
    """
    found = {}
    for variant in ("", "lora", "masked", "masked lora", "kept", "kept lora"):
        file = folder / f"alone-{variant}.pt"
        result = case(
            common
            | {
                "variant": variant,
                "micro": 10_000,
                "weights": str(file),
                "save": str(folder / f"alone-{variant}"),
            }
        )
        found[variant] = result, torch.load(file)
    return found


@pytest.fixture(scope="module")
def pair(common: dict[str, Any], folder: Path, alone: Any) -> dict[str, list[dict[str, Any]]]:
    wide = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 1}
    random_llama(folder / "wide", **wide, num_attention_heads=4)
    TO_RESUME["fsdp 8bit"]["model"] = str(folder / "wide")
    cases = whole([*USUAL, "fsdp 8bit"], common, folder)
    cases["from one"] = (
        common
        | KINDS["fsdp"]
        | {"weights": str(folder / "from one.pt"), "load": str(folder / "alone-")}
    )
    large = {
        "vocab_size": 4000,
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 5,
        "num_attention_heads": 8,
    }
    AutoModelForCausalLM.from_config(LlamaConfig(**large), dtype=torch.bfloat16).save_pretrained(
        folder / "large"
    )
    # first: freed memory would be taken again
    loading = {"loading": common | {"model": str(folder / "large"), "loading": True}}
    return on_two(loading | cases, folder / "cases")


@pytest.fixture(scope="module")
def rarer(common: dict[str, Any], folder: Path) -> dict[str, list[dict[str, Any]]]:
    return on_two(whole(RARER, common, folder), folder / "rarer")


@pytest.fixture
def ranks(kind: str, request: pytest.FixtureRequest) -> dict[str, list[dict[str, Any]]]:
    """The cases that ``kind`` is among."""
    found: dict[str, list[dict[str, Any]]] = request.getfixturevalue(
        "rarer" if kind in RARER else "pair"
    )
    return found


@pytest.fixture(scope="module")
def resumed_alike(
    pair: dict[str, list[dict[str, Any]]],
    rarer: dict[str, list[dict[str, Any]]],
    common: dict[str, Any],
    folder: Path,
) -> dict[str, list[dict[str, Any]]]:
    return on_two(again(RESUMED_ALIKE, common, folder), folder / "rest")


def whole(kinds: list[str], common: dict[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    """Cases from the beginning to the end, and those of them that go on from a checkpoint."""
    return {
        name: common
        | TO_RESUME[name]
        | {"weights": str(folder / f"{name}.pt"), "save": str(folder / name)}
        for name in kinds
    } | again([name for name in kinds if name not in RESUMED_ALIKE], common, folder)


def again(kinds: list[str], common: dict[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    """Cases that go on from the checkpoints of ``kinds``."""
    return {
        f"{name} again": common
        | TO_RESUME[name]
        | {"weights": str(folder / f"{name} again.pt"), "load": str(folder / name)}
        for name in kinds
    }


@pytest.mark.parametrize("kind", marked(KINDS))
def test_two_ranks_train_like_one(
    kind: str, ranks: dict[str, Any], alone: Any, folder: Path
) -> None:
    both, (single, weights) = ranks[kind], alone[KINDS[kind].get("variant", "")]
    assert both[0]["kind"] == kind.split()[0]
    np.testing.assert_allclose(
        np.sum([rank["held_out"] for rank in both], axis=0), single["held_out"], rtol=1e-5
    )
    np.testing.assert_allclose(
        np.sum([rank["train"] for rank in both], axis=0), single["train"], rtol=1e-5
    )
    np.testing.assert_array_equal(np.sum([rank["count"] for rank in both], axis=0), single["count"])
    for rank in both:
        assert rank["samples"] == single["samples"] and rank["tokens"] == single["tokens"]
        for what in ("products", "variances", "with_held_out"):
            np.testing.assert_allclose(rank[what], single[what], rtol=2e-3, atol=1e-6)
    found = torch.load(folder / f"{kind}.pt")
    assert found.keys() == weights.keys()
    for name, expected in weights.items():
        torch.testing.assert_close(found[name], expected, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", marked(name for name in TO_RESUME if name not in RESUMED_ALIKE))
def test_a_resumed_run_ends_with_the_same_bits(
    kind: str, ranks: dict[str, Any], folder: Path
) -> None:
    ended_alike(ranks[kind], ranks[f"{kind} again"], folder / kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", RESUMED_ALIKE)
def test_so_does_one_that_took_its_steps_otherwise(
    kind: str, ranks: dict[str, Any], resumed_alike: dict[str, Any], folder: Path
) -> None:
    ended_alike(ranks[kind], resumed_alike[f"{kind} again"], folder / kind)


def ended_alike(whole: list[dict[str, Any]], again: list[dict[str, Any]], place: Path) -> None:
    assert [rank["first"] for rank in again] == [CUT, CUT]
    one, other = torch.load(f"{place}.pt"), torch.load(f"{place} again.pt")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert [rank["held_out"][-1] for rank in whole] == [rank["held_out"][-1] for rank in again]


def test_another_number_of_ranks_goes_on_with_the_same_losses(
    pair: dict[str, Any], alone: Any, common: Any, folder: Path
) -> None:
    """One rank's checkpoint on two, and two ranks' on one."""
    single, _ = alone[""]
    np.testing.assert_allclose(
        np.sum([rank["held_out"][-1] for rank in pair["from one"]], axis=0),
        single["held_out"][-1],
        rtol=1e-4,
    )
    for kind in ("ddp", "fsdp"):
        found = case(common | {"load": str(folder / kind)})
        assert found["first"] == CUT and STEPS > CUT
        np.testing.assert_allclose(found["held_out"][-1], single["held_out"][-1], rtol=1e-4)
        np.testing.assert_allclose(found["train"], single["train"], rtol=1e-4)


def test_nothing_in_a_checkpoint_is_a_pickle(pair: dict[str, Any], folder: Path) -> None:
    names = sorted(file.name for file in (folder / "fsdp").iterdir())
    assert {Path(name).suffix for name in names} == {".json", ".safetensors"}
    assert sum(name.endswith(".safetensors") for name in names) == 2


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(),
    reason="needs Linux to tell memory of its own from files'",
)
def test_no_rank_ever_holds_the_whole_model(pair: dict[str, Any]) -> None:
    """71 million parameters in float32, half of them on each rank, and at most a few tensors more
    while they are read.
    """
    for rank in pair["loading"]:
        assert rank["whole"] == 4 * (
            2 * 4000 * 1024 + 5 * (4 * 1024 * 1024 + 3 * 1024 * 2816 + 2 * 1024) + 1024
        )
        assert 0.5 * rank["whole"] <= rank["grown"] <= 0.65 * rank["whole"]
