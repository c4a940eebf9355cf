"""How commands end that cannot write, are given options that do nothing together, or are called
twice at once.
"""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from processes import ROOT, call_script
from safetensors.torch import load_file, save_file

from versatune_ray.cli import writing
from versatune_ray.commands import init
from versatune_ray.errors import UserError, is_disk_full, one_line
from versatune_ray.pipeline import beside
from versatune_ray.settings.loading import load
from versatune_ray.training import __main__ as alone
from versatune_ray.training import local
from versatune_ray.training import soup as cooking


def test_what_cannot_be_written_is_named_and_a_full_disk_is_not_hidden(tmp_path: Path) -> None:
    target = tmp_path / "none" / "page.html"
    told = r"page\.html: cannot be written: no such file or dir"
    with pytest.raises(UserError, match=told), writing(target):
        target.write_text("")
    with pytest.raises(FileNotFoundError), writing(target):
        (tmp_path / "of" / "another").read_text()  # nothing of the page
    with pytest.raises(OSError, match="full"), writing(target):
        raise OSError(errno.ENOSPC, "full")


def test_a_full_disk_is_known_in_whatever_words() -> None:
    class SafetensorError(Exception):
        """As the library has it."""

    error = SafetensorError("Error while serializing: I/O error: No space left (os error 28)")
    assert is_disk_full(error) and one_line(error).startswith("no space left on the disk; free")
    assert not is_disk_full(SafetensorError("I/O error: Permission denied (os error 13)"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["a", "-o", "x.html"], "-o: names the page that compares several runs"),
        (["a", "--follow", "--live"], "--follow: writes the page again and again"),
        (["a", "b", "--live"], "--live: takes one run"),
        (["a", "b", "--follow"], "--follow: takes one run"),
        (["a", "--port", "80"], "--port: is that of --live; add it"),
        (["a", "--live", "--port", "70000"], "--port: 70000 is not within 0 and 65535"),
    ],
)
def test_a_report_refuses_options_that_do_nothing(
    arguments: list[str], told: str, tmp_path: Path
) -> None:
    status, _, errors = call_script([str(ROOT / "jobs" / "report.py"), *arguments], tmp_path)
    assert status == 2 and errors.startswith(f"error: {told}") and errors.count("\n") == 1


def _model(folder: Path, value: float) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    save_file({"w": torch.full((2,), value)}, folder / "model.safetensors")
    return folder


def test_two_soups_at_once_do_not_spoil_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [_model(tmp_path / "a", 1.0), _model(tmp_path / "b", 3.0)]
    write, target = cooking.write_json, tmp_path / "soup"

    def while_another(path: Path, value: Any) -> None:
        monkeypatch.setattr(cooking, "write_json", write)
        cooking.soup(models, [1, 1], tmp_path / "other")
        cooking.soup(models, [1, 1], target)  # the same, and done before this one
        write(path, value)

    monkeypatch.setattr(cooking, "write_json", while_another)
    with pytest.raises(OSError, match="not empty"):
        cooking.soup(models, [1, 3], target)
    for name in ("soup", "other"):
        assert load_file(tmp_path / name / "model.safetensors")["w"].tolist() == [2.0, 2.0]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a", "b", "other", "soup"]


def test_training_without_ray_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["training", "training.lora.alpha=64"])

    def ends(error: BaseException) -> int:
        def failing(_: Any) -> None:
            raise error

        monkeypatch.setattr(local, "finetune_alone", failing)
        return alone.main()

    assert ends(KeyboardInterrupt()) == 130
    said = capsys.readouterr()
    assert said.err == "interrupted; the same command goes on from here\n"
    assert "[settings] training.lora.alpha=64 does nothing here" in said.out
    assert ends(OSError(errno.ENOSPC, "full", "x")) == 2
    assert capsys.readouterr().err.startswith("error: no space left on the disk (x); free some")
    with pytest.raises(ZeroDivisionError):
        ends(ZeroDivisionError())


def test_no_model_is_told_where_the_input_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(_: str) -> str:
        raise EOFError

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", ended)
    with pytest.raises(UserError, match="--model: none given"):
        init.command("", ["data"])


def test_the_run_beside_is_looked_at_before_hours_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []
    monkeypatch.setattr(beside, "check_unchanged", looked.append)
    monkeypatch.setattr(beside, "plan_pipeline", lambda _: "first")
    config = load([], ["run=mine", f"storage={tmp_path}"])
    beside.check_beside(config)
    assert [(one.run, one.mixture.policy) for one in looked] == [("mine-balanced", "balanced")]
    assert beside.plan_beside(config).startswith("first\n\nthe same again as run mine-balanced")
    same = load([], ["mixture.preset=balanced"])
    beside.check_beside(same)
    assert len(looked) == 1 and beside.plan_beside(same) == "first"
