"""``versatune chat`` and what is known of a run by its folder: on random models that are as they
are exported.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from versatune_ray.commands import chat
from versatune_ray.commands.runs import folder_of, is_folder, tuned_of
from versatune_ray.errors import UserError
from versatune_ray.settings.location import root, shown


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a tiny base made for it, whose tuned model is the base itself."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    shutil.copytree(tiny_model, folder / "finetune" / "model")
    (folder / "config.yaml").write_text("run: mine\nversions: {python: '3.11'}\n")
    (folder / "data.json").write_text(json.dumps({"tokenizer": str(tiny_model)}))
    return folder


def piped(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def answers(said: str) -> dict[str, str]:
    lines = [line.split(" │ ") for line in said.splitlines() if " │ " in line]
    return {name.strip(): text for name, text in lines}


def test_the_same_model_says_the_same_beside_itself(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chat.command("", [str(run), "--prompt", "w3 w4", "--tokens", "5"])
    said = answers(capsys.readouterr().out)
    assert list(said) == ["tuned", "base"] and said["tuned"] == said["base"]
    piped(monkeypatch, "w3 w4\n")
    chat.command("", [str(run), "--no-base", "--tokens", "5"])
    assert answers(capsys.readouterr().out) == {"tuned": said["tuned"]}


def test_an_adapter_answers_beside_its_base(
    run: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    shutil.copytree(run, tmp_path / "lora")
    model = tmp_path / "lora" / "finetune" / "model"
    for file in ("config.json", "model.safetensors"):
        (model / file).unlink()
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    base.name_or_path = str(tiny_model)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear"))
    torch.manual_seed(0)
    for name, values in adapted.named_parameters():
        if "lora_B" in name:
            values.data.normal_(std=2.0)
    adapted.save_pretrained(model)
    found = tuned_of(str(tmp_path / "lora"))
    assert found.adapter and found.base == str(tiny_model)
    chat.command("", [str(tmp_path / "lora"), "--prompt", "w3 w4", "--tokens", "8"])
    said = answers(capsys.readouterr().out)
    chat.command("", [str(run), "--prompt", "w3 w4", "--tokens", "8", "--no-base"])
    assert said["base"] == answers(capsys.readouterr().out)["tuned"] != said["tuned"]


def test_each_model_goes_on_with_its_own_conversation(capsys: pytest.CaptureFixture[str]) -> None:
    seen = []

    def answer(talks):  # type: ignore[no-untyped-def]
        for name, turns in talks.items():
            seen.append([turn["content"] for turn in turns])
            yield name, f"{name} of {len(turns)}\n\x1b[2Jtwo"

    chat.talk(["tuned", "base"], answer, ["a", "", "b", "/new", "c"], remember=True)
    assert seen[2] == ["a", "tuned of 1\n\x1b[2Jtwo", "b"]
    assert seen[3] == ["a", "base of 1\n\x1b[2Jtwo", "b"] and seen[4] == ["c"]
    said = capsys.readouterr().out
    assert "tuned │ tuned of 1\n      │ \\x1b[2Jtwo\n" in said and "\x1b" not in said


def test_ctrl_c_and_ctrl_d_leave_in_peace(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(chat, "_models", lambda *_: lambda talks: iter(()))
    for left in (EOFError, KeyboardInterrupt):

        def end(_: str, left: type[BaseException] = left) -> str:
            raise left

        monkeypatch.setattr("builtins.input", end)
        chat.command("", [str(run)])
    assert f"beside it: {tuned_of(str(run)).base}" in capsys.readouterr().out


def test_a_run_goes_by_its_name_and_one_without_a_model_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    assert folder_of("mine") == folder_of("runs/mine") == tmp_path / "runs" / "mine"
    (tmp_path / "runs" / "mine" / "config.yaml").write_text(yaml.safe_dump({"run": "mine"}))
    with pytest.raises(UserError, match=r"^mine: no tuned model \(mine/finetune/model\)"):
        tuned_of("mine")
    for arguments, words in (
        (["mine", "--tokens", "0"], "--tokens: 0 is below 1"),
        (["mine", "--temperature", "-1"], "--temperature: -1 is not between"),
    ):
        with pytest.raises(UserError, match=words):
            chat.command("", arguments)


def test_the_tiny_base_of_a_run_behind_a_uri_is_in_its_mirror(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERSATUNE_WORK", str(tmp_path / "work"))
    for brings in ("pull", "bring"):
        monkeypatch.setattr(f"versatune_ray.commands.runs.{brings}", lambda *_, **__: None)
    storage = root("s3://bucket/runs?region=eu")
    shutil.copytree(run, storage / "mine")
    tiny = storage / ".cache" / "tiny-base" / "key" / "tiny-base"
    said = {"tokenizer": shown(tiny)}
    assert said == {"tokenizer": "s3://bucket/runs/.cache/tiny-base/key/tiny-base"}
    (storage / "mine" / "data.json").write_text(json.dumps(said))
    found = tuned_of("s3://bucket/runs?region=eu/mine")
    assert found.base == str(tiny) and is_folder(found.base) and not is_folder("Qwen/Qwen2.5-7B")
