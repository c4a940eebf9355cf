"""Going on with a run: after an update of the package, and without Ray."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from versatune_ray.errors import UserError
from versatune_ray.runs.folder import RunFolder, check_unchanged
from versatune_ray.settings.loading import load

BEGUN = ["mixture.start=uniform", "mixture.policy=constant"]


def begun(tmp_path: Path, *overrides: str) -> Path:
    """A run whose fine-tuning was begun; its saved configuration."""
    with RunFolder(load([], [f"storage={tmp_path}", *BEGUN, *overrides])) as folder:
        folder.begin({"model": "m"})
        (folder.path / "finetune" / "adjustments.jsonl").write_text('{"step": 0}\n')
        return folder.path / "config.yaml"


def check(tmp_path: Path, *overrides: str) -> None:
    check_unchanged(load([], [f"storage={tmp_path}", *BEGUN, *overrides]))


def edit(saved: Path, **training: object) -> None:
    tree = yaml.safe_load(saved.read_text())
    tree["training"] |= training
    tree["training"] = {key: value for key, value in tree["training"].items() if value is not ...}
    saved.write_text(yaml.safe_dump(tree))


def test_a_key_that_there_was_not_yet_counts_as_at_its_default(tmp_path: Path) -> None:
    edit(begun(tmp_path), decay=...)
    check(tmp_path)
    with pytest.raises(UserError, match=r"other settings \(training\.decay: 0\.2 → 0\.3\)"):
        check(tmp_path, "training.decay=0.3")


def test_a_key_that_there_is_no_more_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(begun(tmp_path), momentum=0.9)
    capsys.readouterr()
    check(tmp_path)
    assert "training.momentum, with which run 'quickstart' was begun, is no key any more" in (
        capsys.readouterr().out
    )


def test_a_value_that_is_none_any_more_is_one_line(tmp_path: Path) -> None:
    edit(begun(tmp_path), schedule="sine")
    with pytest.raises(UserError, match=r"another version.*training\.schedule: 'sine'.*run=…"):
        check(tmp_path)


def test_what_may_change_may_and_the_rest_is_named(tmp_path: Path) -> None:
    begun(tmp_path)
    check(tmp_path, "training.workers=5", "evaluation.limit=3")
    with pytest.raises(UserError, match=r"training\.learning_rate: 2e-05 → 0\.1.*; and 1 more"):
        check(
            tmp_path,
            *(f"training.{key}=0.1" for key in ("learning_rate", "warmup", "eps", "epochs")),
            "training.lora.rank=4",
            "seed=3",
        )


def test_a_run_that_has_measured_nothing_can_be_begun_with_other_settings(tmp_path: Path) -> None:
    log = begun(tmp_path, "training.lora.targets=[nope]").parent / "finetune" / "adjustments.jsonl"
    with pytest.raises(UserError, match=r"training\.lora\.targets: \['nope'\] → "):
        check(tmp_path)
    for unbegun in (lambda: log.write_text(""), log.unlink):
        unbegun()
        check(tmp_path)
        with RunFolder(load([], [f"storage={tmp_path}", *BEGUN])) as folder:
            folder.begin({"model": "another"})


def test_other_data_or_another_model_are_refused(tmp_path: Path) -> None:
    begun(tmp_path)
    with RunFolder(load([], [f"storage={tmp_path}", *BEGUN])) as folder:
        folder.begin({"model": "m"})
        with pytest.raises(UserError, match="finetune: model changed since this fine-tuning began"):
            folder.begin({"model": "other"})


def test_a_file_where_the_runs_should_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match=r"storage: .*runs is a file, and a folder is needed"):
        RunFolder(load([], [f"storage={tmp_path / 'runs'}"])).__enter__()
    with pytest.raises(UserError, match=r"storage: /proc/nowhere: .* cannot be written"):
        RunFolder(load([], ["storage=/proc/nowhere"])).__enter__()


def test_without_ray_changed_settings_data_and_lengths_are_refused_as_with_it(
    tmp_path: Path, tiny_model: Path
) -> None:
    from versatune_ray.training.local import finetune_alone

    def records(name: str, more: str = "") -> None:
        lines = [{"prompt": f"w{i + 3} w4", "completion": f"w{i + 5} w6{more}"} for i in range(40)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))

    def tune(*overrides: str) -> Path:
        common = [
            f"model.path={tiny_model}",
            f"storage={tmp_path / 'runs'}",
            f"domains={{law: {tmp_path / 'law.jsonl'}, code: {tmp_path / 'code.jsonl'}}}",
            *("device=cpu", "data.max_length=32", "training.epochs=0.5", "training.batch_size=16"),
            *("training.metrics=[]", "training.workers=1"),
        ]
        return finetune_alone(load([], [*common, *BEGUN, *overrides]))

    records("law")
    records("code", " w7")
    with pytest.raises(UserError, match=r"data\.max_length: this makes 2048 tokens, more than the"):
        tune("data.max_length=2048")
    model = tune()
    assert (model.parent / "done").is_file()  # what jobs look for before they train or evaluate
    with pytest.raises(UserError, match=r"was begun with other settings \(training\.learning_rate"):
        tune("training.learning_rate=0.5")
    records("code", " w8")  # as many
    with pytest.raises(UserError, match="finetune: stores changed since this fine-tuning began"):
        tune()
    records("law", " w9" * 80)
    with pytest.raises(UserError, match=r"data\.too_long=keep: the longest record of 'law'"):
        tune("run=long", "data.too_long=keep")
    records("law")
    records("code", " w7")
    # what is done is not trained again, with or without checkpoints
    shutil.rmtree(model.parent / "checkpoints")
    (model / "model.safetensors").write_bytes(b"as it was left")
    assert tune("training.max_failures=1") == model
    assert (model / "model.safetensors").read_bytes() == b"as it was left"
