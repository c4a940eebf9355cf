"""The command ``versatune``: what it lists, what it refuses, and a first configuration."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from processes import ROOT

from versatune_ray.commands import command
from versatune_ray.errors import UserError
from versatune_ray.pipeline.starter import starter
from versatune_ray.settings.loading import load


def call(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["versatune", *arguments])
    with pytest.raises(SystemExit) as ended:
        command()
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def records(file: Path, count: int = 3) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": f"q{number}", "completion": file.stem} for number in range(count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_every_job_has_a_command_and_the_overview_fits_a_screen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, said, _ = call(capsys, monkeypatch)
    assert status == 0 and len(said.splitlines()) <= 40
    listed = {line.split()[0] for line in said.splitlines() if line.startswith("  ")}
    assert {file.stem for file in (ROOT / "jobs").glob("*.py")} < listed
    status, said, _ = call(capsys, monkeypatch, "finetune", "--help")
    assert status == 0 and len(said.splitlines()) <= 40 and "--keys" in said


def test_keys_are_those_of_a_section(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, said, _ = call(capsys, monkeypatch, "sweep", "--keys", "training.lora")
    keys = [line.split()[0] for line in said.splitlines() if line.startswith("  training")]
    assert keys[0] == "training.lora.rank" and all(key.startswith("training.lora.") for key in keys)
    _, said, _ = call(capsys, monkeypatch, "sweep", "--keys")
    assert {"training.lora.rank", "mixture.policy"} <= set(said.split())


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["tune"], "error: versatune tune: no such command; did you mean 'finetune'?"),
        (["finetune"], "error: versatune finetune: no configuration; give --config my.yaml"),
        (["finetune", "run=x"], "error: versatune finetune: no configuration; give --config"),
        (["preview", "my.yaml"], "error: my.yaml: a configuration file is given as --config my"),
        (["sweep", "--keys", "mixtur"], "error: --keys mixtur: no such key; did you mean 'mixture"),
        (["serve", "runs/none"], "error: runs/none: no tuned model (runs/none/finetune/model)"),
        (["init", "nowhere", "--model", "m"], "error: nowhere: no such folder"),
    ],
)
def test_mistakes_are_one_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    line: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    status, said, errors = call(capsys, monkeypatch, *arguments)
    assert (status, said) == (2, "")
    assert errors.startswith(line) and errors.count("\n") == 1


def test_a_folder_becomes_a_configuration_that_loads(tmp_path: Path) -> None:
    folder = tmp_path / "records"
    records(folder / "law-train.jsonl")
    records(folder / "law-test.jsonl")
    records(folder / "code, new.jsonl", 300)
    records(folder / "support" / "a.jsonl")
    records(folder / "support" / "b.jsonl")
    (folder / "README.md").write_text("no records")
    (folder / "code, new.jsonl").open("a").write("{broken\n")
    text, looked = starter(folder, "Qwen/Qwen2.5-1.5B")
    (tmp_path / "my.yaml").write_text(text)
    config = load([tmp_path / "my.yaml"])
    assert config.model.path == "Qwen/Qwen2.5-1.5B" and config.mixture.preset == "balanced"
    assert list(config.domains) == ["code-new", "law", "support"]
    assert config.domains["law"].validation == [str(folder / "law-test.jsonl")]
    assert looked[0] == "code-new: of the first 200 records 200 prompt/completion"
    assert looked[2] == "support: of 6 records 6 prompt/completion"
    assert looked[3:] == ["without records, left: README.md"]


def test_a_model_of_a_short_context_gets_records_that_fit(tmp_path: Path) -> None:
    for name in ("law", "code"):
        records(tmp_path / "records" / f"{name}.jsonl")
    for context, line in ((64, "data: {max_length: 64}"), (4096, None)):
        model = tmp_path / f"model-{context}"
        model.mkdir()
        (model / "config.json").write_text(json.dumps({"max_position_embeddings": context}))
        text, _ = starter(tmp_path / "records", str(model))
        assert (line in text) if line else ("max_length" not in text)


def test_one_domain_or_two_files_of_one_are_refused(tmp_path: Path) -> None:
    records(tmp_path / "law.jsonl")
    with pytest.raises(UserError, match=r"1 domain \(law\), and two are needed"):
        starter(tmp_path, "m")
    records(tmp_path / "law.csv.jsonl")
    records(tmp_path / "law-train.jsonl")
    with pytest.raises(UserError, match=r"law\.jsonl: law-train\.jsonl would be domain 'law' too"):
        starter(tmp_path, "m")


@pytest.mark.parametrize(
    "name, words",
    [("test", "named for a split and not"), ("law-test", "no file of 'law' to train")],
)
def test_what_is_held_out_never_becomes_training_data(
    tmp_path: Path, name: str, words: str
) -> None:
    for file in ("code", "support", name):
        records(tmp_path / f"{file}.jsonl")
    with pytest.raises(UserError, match=words):
        starter(tmp_path, "m")


def test_init_never_writes_over_a_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("law", "code"):
        records(tmp_path / "records" / f"{name}.jsonl")
    status, said, _ = call(capsys, monkeypatch, "init", "records", "--model", "m")
    assert status == 0 and "versatune finetune --config versatune.yaml --plan" in said
    assert set(yaml.safe_load(Path("versatune.yaml").read_text())["domains"]) == {"law", "code"}
    status, _, errors = call(capsys, monkeypatch, "init", "records", "--model", "m")
    assert status == 2 and "versatune.yaml: is there already" in errors
    status, _, errors = call(capsys, monkeypatch, "init", "records", "-o", "other.yaml")
    assert status == 2 and "--model: none given" in errors


@pytest.mark.slow
def test_a_wheel_has_all_that_the_command_needs(tmp_path: Path) -> None:
    """Unpacked outside of the repository, on the packages that are here."""
    import zipfile

    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "-w",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "unpacked")
    packages = {path.parent for path in (ROOT / "versatune_ray").rglob("*.py")}
    there = tmp_path / "unpacked" / "versatune_ray"
    assert all((there / path.relative_to(ROOT / "versatune_ray")).is_dir() for path in packages)
    for wanted in ("report/*.jinja", "report/*.css", "evaluation/tasks/*.yaml"):
        assert len(list(there.glob(wanted))) == len(list((ROOT / "versatune_ray").glob(wanted))) > 0
    program = "from versatune_ray.commands import command; command()"
    for arguments in (["quickstart", "--print-config"], ["sweep", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            env={"PYTHONPATH": str(tmp_path / "unpacked"), "PATH": "/usr/bin:/bin"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
