"""The steps as functions, as a notebook calls them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import words_per_domain

import versatune_ray
from versatune_ray.api import Detected, Evaluated, Swept
from versatune_ray.errors import UserError
from versatune_ray.evaluation.scores import Score

NAMES = ("law", "code")


@pytest.fixture
def config(tiny_model: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "run": "notebook",
        "storage": str(tmp_path / "runs"),
        "model": {"path": str(tiny_model)},
        "data": {"max_length": 64},
        "domains": words_per_domain(tmp_path, NAMES),
        "mixture": {"start": "uniform", "sigma": 2.0},
        "reference": {"epochs": 2, "learning_rate": 1e-2, "batch_size": 8, "workers": 1},
        "training": {
            "workers": 1,
            "epochs": 1,
            "samples_per_epoch": 80,
            "batch_size": 8,
            "learning_rate": 1e-2,
            "adjust_every": 5,
        },
    }


def test_references_and_tuning_return_what_the_files_say(
    ray_cluster: None, config: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    found = versatune_ray.reference(config)
    run = Path(config["storage"]) / "notebook"
    stored = json.loads((run / "reference" / "losses.json").read_text())
    assert (
        found.losses == {name: stored["domains"][name]["loss"] for name in NAMES}
        and found.unit == "nats/token"
    )
    assert str(found).splitlines()[0].split() == ["domain", "reference", "loss", "(nats/token)"]

    tuned = versatune_ray.finetune(config, {"training.epochs": 2})
    assert (tuned.model / "config.json").is_file()
    assert [line["step"] for line in tuned.adjustments] == [0, 5, 10, 15, 20]
    row = str(tuned).splitlines()[1].split()
    assert (
        row[0] == "law"
        and row[1] == f"{tuned.adjustments[0]['loss']['law']:.4f}"
        and row[3:5] == ["50.0", "%"]
    )
    capfd.readouterr()
    again = versatune_ray.finetune(config, {"training.epochs": 2})
    assert again == tuned and "[fine-tuning] reused" in capfd.readouterr().out
    with pytest.raises(
        UserError, match=r"training\.epoch: unknown key; did you mean 'training\.epochs'\?"
    ):
        versatune_ray.finetune(config, {"training.epoch": 2})


def test_results_show_themselves_and_trust_no_name() -> None:
    detected = Detected(
        {"<b>": {"law": 0.25, "code": 0.75}},
        {"<b>": {"law": (0.2, 0.3), "code": (0.7, 0.8)}},
        Path("report.html"),
    )
    assert str(detected).splitlines()[1] == "<b>    25.0 % (20.0–30.0)  75.0 % (70.0–80.0)"
    assert "<td>&lt;b&gt;</td>" in detected._repr_html_() and "<b>" not in detected._repr_html_()
    assert repr(detected) != "" and "<th>model</th>" in detected._repr_html_()
    evaluated = Evaluated(
        {"base": {"law": Score(0.5, 0.05), "average": Score(0.5, None)}}, [], Path("report.html")
    )
    assert str(evaluated).splitlines()[1].split() == ["base", "50.0", "±", "5.0", "50.0"]
    swept = Swept(
        [{"trial": "a", "mixture.sigma": 2.0, "score": 0.123456, "error": None}],
        Path("best.yaml"),
        Path("report.html"),
    )
    assert [line.split() for line in str(swept).splitlines()] == [
        ["mixture.sigma", "score", "error"],
        ["2", "0.1235"],
    ]
