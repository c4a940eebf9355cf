"""``jobs/evaluate.py`` on real engines: the harness's own numbers, several models side by side,
nothing measured twice.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import call_job
from tiny import random_llama, write_records

import versatune_ray

pytest.importorskip("lm_eval")

LIMIT = 24
WORDS = [f"w{number}" for number in range(3, 60)]


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in a shape that vLLM's CPU attention takes: heads of 32."""
    folder = tmp_path_factory.mktemp("models") / "heads-of-32"
    shutil.copytree(tiny_model, folder)
    random_llama(folder, seed=1, max_position_embeddings=256, initializer_range=0.3)
    return folder


@pytest.fixture(scope="module")
def job(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Choices that a model of random weights prefers one way or another, and questions that it
    cannot answer.
    """
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("benchmarks")
    choice = [
        {
            "question": " ".join(rng.choice(WORDS, 6)),
            "choices": [str(word) for word in rng.choice(WORDS, 4, replace=False)],
            "answer": int(rng.integers(4)),
        }
        for _ in range(40)
    ]
    question = [
        {"question": " ".join(rng.choice(WORDS, 4)), "answer": str(rng.choice(WORDS))}
        for _ in range(30)
    ]
    for name, records in (("exam", choice), ("quiz", question)):
        write_records(folder / f"{name}.jsonl", records)
    return {
        "run": "measured",
        "storage": str(folder / "runs"),
        "model": {"path": str(model)},
        "domains": {name: {"train": str(folder / "quiz.jsonl")} for name in ("law", "code")},
        "evaluation": {
            "limit": LIMIT,
            "max_tokens": 4,
            "benchmarks": {
                "law": [
                    {"task": str(folder / "exam.jsonl"), "shots": 1, "choices": "texts"},
                    str(folder / "quiz.jsonl"),
                ]
            },
            "models": {"copy": str(model)},
        },
    }


def evaluate(job: dict[str, Any], *overrides: str, status: int = 0) -> str:
    folder = Path(job["storage"]).parent
    return call_job(job, "evaluate.py", folder, *overrides, status=status)


def test_the_numbers_are_the_harnesss_own_and_are_kept(
    ray_cluster: None, job: dict[str, Any], model: Path
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    from versatune_ray.evaluation.benchmarks import asked
    from versatune_ray.evaluation.catalogue import task_manager
    from versatune_ray.settings.loading import parse

    printed = evaluate(job)
    folder = Path(job["storage"])
    rows = json.loads((folder / "measured" / "evaluation" / "results.json").read_text())["results"]
    found = {(row["model"], row["benchmark"]): row for row in rows}
    assert set(found) == {(model, name) for model in ("base", "copy") for name in ("exam", "quiz")}

    # The same task, model and limit through the harness alone, with Hugging Face's forward pass
    # instead of vLLM's.
    config = parse(job)
    (exam, quiz) = asked(config, config.cache_folder)
    alone = HFLM(pretrained=str(model), device="cpu", dtype="float32", batch_size=8)
    for one, metric in ((exam, "acc"), (quiz, "exact_match")):
        own = simple_evaluate(
            model=alone,
            tasks=[one.spec],
            num_fewshot=one.shots,
            limit=LIMIT,
            task_manager=task_manager(),
            fewshot_random_seed=0,
        )["results"][one.name]
        for name in ("base", "copy"):
            row = found[name, one.name]
            assert (row["metric"], row["n"], row["unit"]) == (metric, LIMIT, "share")
            right, error = own[f"{metric},none"], own[f"{metric}_stderr,none"]
            if right in (0, 1):  # the harness's own is 0; ours half of Wilson's interval
                assert error == 0
                error = 1.96 / (2 * (LIMIT + 1.96**2))
            np.testing.assert_allclose(
                [row["value"], row["standard_error"]], [right, error], atol=1e-6
            )
    assert 0 < found["base", "exam"]["value"] < 1
    mean = (found["base", "exam"]["value"] + found["base", "quiz"]["value"]) / 2
    assert f"{100 * mean:.1f} ±" in next(
        line for line in printed.splitlines() if line.startswith("base")
    )
    assert 'id="benchmarks"' in (folder / "measured" / "report.html").read_text()

    results = list((folder / ".cache" / "benchmark-result").glob("*/result.json"))
    assert len(results) == 2, "two models with the same weights share their results"
    before = {file: file.stat().st_mtime_ns for file in results}
    # as a notebook does it, and without an engine: everything is there
    again = versatune_ray.evaluate(job)
    assert {file: file.stat().st_mtime_ns for file in results} == before
    assert again.scores["base"]["law"].value == pytest.approx(mean)


def test_what_fails_is_named_and_the_others_go_on(
    ray_cluster: None, job: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    printed = evaluate(
        job | {"run": "partly"}, f"evaluation.models.broken={tmp_path / 'broken'}", status=1
    )
    assert (
        "2 measurements failed (broken: exam:" in printed
        and "the same command tries them again" in printed
    )
    rows = json.loads(
        (Path(job["storage"]) / "partly" / "evaluation" / "results.json").read_text()
    )["results"]
    assert {row["model"] for row in rows} == {"base", "copy"}
