"""What an engine is given, and what of it a cached result depends on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from versatune_ray.errors import UserError
from versatune_ray.evaluation.catalogue import edited
from versatune_ray.runtime import engine
from versatune_ray.runtime.engine import engine_key, engine_options
from versatune_ray.settings import Engine


def key(gpu: bool = True, replicas: int = 1, tensor_parallel: int = 1, **options: Any) -> Any:
    settings = Engine(replicas=replicas, tensor_parallel=tensor_parallel, options=options)
    return engine_key(settings, gpu)


@pytest.mark.parametrize(
    "options", [{"max_model_len": 100}, {"dtype": "float16"}, {"quantization": "fp8"}]
)
def test_what_changes_answers_changes_the_key(options: dict[str, Any]) -> None:
    assert key(**options) != key()


def test_device_and_version_change_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu, on_cpu = key(), key(gpu=False)
    assert on_gpu != on_cpu and on_cpu["options"]["dtype"] == "float32"
    monkeypatch.setattr(engine, "_version", lambda package: "9.9.9")
    assert key() != on_gpu and key()["vllm"] == "9.9.9"


@pytest.mark.parametrize(
    "options", [{"max_num_seqs": 3}, {"hf_token": "x"}, {"enforce_eager": True}]
)
def test_what_changes_speed_alone_does_not(options: dict[str, Any]) -> None:
    assert key(**options) == key() == key(replicas=2, tensor_parallel=2)


def test_weights_are_read_from_what_holds_no_pickle() -> None:
    assert engine_options(Engine(), True, trust_remote_code=False)["load_format"] == "safetensors"
    for name in ("auto", "pt", "npcache", "bitsandbytes", "tensorizer"):
        with pytest.raises(UserError, match=rf"load_format: '{name}' may unpickle"):
            engine_options(Engine(options={"load_format": name}), False, trust_remote_code=False)


def test_an_edited_task_is_another_task(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("task: a\n")
    (tmp_path / "utils.py").write_text("x = 1\n")
    index = {
        "a": SimpleNamespace(cfg={"task": "a", "n": 1}, yaml_path=tmp_path / "a.yaml", tags=set()),
        "group": SimpleNamespace(
            cfg={"group": "group", "task": ["a", {"task": "gone"}]}, yaml_path=None, tags=set()
        ),
        "tag": SimpleNamespace(cfg=None, yaml_path=None, tags={"a"}),
    }
    found = [{name: edited(index, name) for name in index}]
    for file, text in (("a.yaml", "task: a\nn: 2\n"), ("utils.py", "x = 2\n")):
        (tmp_path / file).write_text(text)
        found.append({name: edited(index, name) for name in index})
    index["a"].cfg["n"] = 2
    found.append({name: edited(index, name) for name in index})
    for name in index:
        assert len({each[name] for each in found}) == 4
