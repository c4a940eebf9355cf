"""The same run on one rank and on two, with DDP and FSDP2, packed and padded, with LoRA, across
checkpoints: the same numbers.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_samples, write_store
from ranks import CUT, STEPS, case
from safetensors.torch import save_file
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
}
KINDS_TO_RESUME: dict[str, dict[str, Any]] = KINDS | {
    "fsdp 8bit": {"execution": {"parallel": "fsdp"}, "optimizer": "adamw_8bit"}
}


def torchrun(cases: list[dict[str, Any]], file: Path, ranks: int = 2) -> list[list[dict[str, Any]]]:
    """Results of every rank, by rank and case."""
    file.write_text(json.dumps(cases))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(ranks),
    ]
    subprocess.run(
        [*command, str(Path(__file__).with_name("ranks.py")), str(file)], check=True, timeout=300
    )
    return [json.loads(Path(f"{file}.{rank}").read_text()) for rank in range(ranks)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def common(folder: Path, tiny_model: Path) -> dict[str, Any]:
    paths = {
        name: [
            str(write_store(folder / name, random_samples(seed, 30))),
            str(write_store(folder / f"{name}-v", random_samples(seed + 9, 7))),
        ]
        for seed, name in enumerate(("law", "code"))
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
    part of the model.
    """
    found = {}
    for variant in ("", "lora", "masked", "masked lora"):
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
    torch.manual_seed(0)
    shape = {
        "vocab_size": 64,
        "hidden_size": 128,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }
    AutoModelForCausalLM.from_config(LlamaConfig(**shape)).save_pretrained(folder / "wide")
    KINDS_TO_RESUME["fsdp 8bit"]["model"] = str(folder / "wide")
    cases = [
        common | given | {"weights": str(folder / f"{name}.pt"), "save": str(folder / name)}
        for name, given in KINDS_TO_RESUME.items()
    ]
    cases += [
        common | given | {"weights": str(folder / f"{name} again.pt"), "load": str(folder / name)}
        for name, given in KINDS_TO_RESUME.items()
    ]
    cases.append(
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
    cases.insert(0, common | {"model": str(folder / "large"), "loading": True})
    ranks = torchrun(cases, folder / "cases.json")
    names = [
        "loading",
        *KINDS_TO_RESUME,
        *(f"{name} again" for name in KINDS_TO_RESUME),
        "from one",
    ]
    return {name: [rank[place] for rank in ranks] for place, name in enumerate(names)}


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_train_like_one(
    kind: str, pair: dict[str, Any], alone: Any, folder: Path
) -> None:
    ranks, (single, weights) = pair[kind], alone[KINDS[kind].get("variant", "")]
    assert ranks[0]["kind"] == kind.split()[0]
    np.testing.assert_allclose(
        np.sum([rank["held_out"] for rank in ranks], axis=0), single["held_out"], rtol=1e-5
    )
    np.testing.assert_allclose(
        np.sum([rank["train"] for rank in ranks], axis=0), single["train"], rtol=1e-5
    )
    np.testing.assert_array_equal(
        np.sum([rank["count"] for rank in ranks], axis=0), single["count"]
    )
    for rank in ranks:
        assert rank["samples"] == single["samples"] and rank["tokens"] == single["tokens"]
        np.testing.assert_allclose(rank["products"], single["products"], rtol=1e-3)
    found = torch.load(folder / f"{kind}.pt")
    assert found.keys() == weights.keys()
    for name, expected in weights.items():
        torch.testing.assert_close(found[name], expected, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS_TO_RESUME)
def test_a_resumed_run_ends_with_the_same_bits(
    kind: str, pair: dict[str, Any], folder: Path
) -> None:
    assert [rank["first"] for rank in pair[f"{kind} again"]] == [CUT, CUT]
    whole, again = torch.load(folder / f"{kind}.pt"), torch.load(folder / f"{kind} again.pt")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert [rank["held_out"][-1] for rank in pair[kind]] == [
        rank["held_out"][-1] for rank in pair[f"{kind} again"]
    ]


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
