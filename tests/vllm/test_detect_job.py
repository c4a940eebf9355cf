"""Detection with real engines: several models and one judge, growing stores, the kinds of judge,
and what each leaves in the files.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset
import pytest
import yaml
from conftest import SharedRay
from detect_jobs import (
    CLASSES,
    DOMAINS,
    assert_complete,
    base_model,
    classifier_model,
    distribution,
    judge_model,
    samples,
    write_domains,
)
from processes import call_job

from versatune_ray.detection.account import place_detection
from versatune_ray.detection.detect import Detections, detect_models
from versatune_ray.detection.prompt import order_of
from versatune_ray.detection.texts import Detected
from versatune_ray.microworld.prepare import prepare
from versatune_ray.settings import Config
from versatune_ray.settings.loading import parse

SAMPLES, REPEATS = 60, 2
LONGEST = 12  # tokens of a text that the classifier reads; most texts are longer


@pytest.fixture(scope="module")
def storage() -> Iterator[Path]:
    """A folder with two base models, a judge, a classifier and the settings of a job: none of
    them knows anything.
    """
    folder = Path(tempfile.mkdtemp(prefix="versatune-test-"))
    try:
        for seed in (1, 2):
            base_model(folder / f"base-{seed}", seed)
        settings = {
            "run": "many",
            "storage": str(folder),
            "device": "cpu",
            "base": {"rows": 60, "judge_rows": 0},
            "domains": write_domains(folder),
            "detection": {
                "models": [str(folder / f"base-{seed}") for seed in (1, 2)],
                "samples": SAMPLES,
                "repeats": REPEATS,
                "generation": {"max_tokens": 24},
                "engine": {"batch_size": 64},
                "judge": {
                    "kind": "classifier",
                    "path": str(classifier_model(folder / "classifier")),
                    "max_text_tokens": LONGEST,
                },
            },
        }
        judge_model(folder / "judge")
        (folder / "job.yaml").write_text(yaml.safe_dump(settings))
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def first(storage: Path, shared_ray: SharedRay) -> str:
    shared_ray.start()
    return call_job(yaml.safe_load((storage / "job.yaml").read_text()), "detect.py", storage)


@pytest.fixture(scope="module")
def again(storage: Path, first: str) -> str:
    before = {file: file.stat().st_mtime_ns for file in (storage / ".cache").rglob("*.parquet")}
    printed = call_job(yaml.safe_load((storage / "job.yaml").read_text()), "detect.py", storage)
    assert {
        file: file.stat().st_mtime_ns for file in (storage / ".cache").rglob("*.parquet")
    } == before
    return printed


def settings_of(storage: Path, **detection: Any) -> Config:
    """The job's settings, others where ``detection`` says so; for one model, since the sequences of
    all are there.
    """
    tree = yaml.safe_load((storage / "job.yaml").read_text())
    tree["detection"] |= {"models": [str(storage / "base-1")], **detection}
    config: Config = parse(tree)
    return config


def detect_here(config: Config) -> tuple[Detections, Detected]:
    done = detect_models(config.detection.models, config, gpu=False)
    return done, next(iter(done.detected.values()))


def vllm_judge(storage: Path, **judge: Any) -> dict[str, Any]:
    return {
        "path": str(storage / "judge"),
        "prompt": "? {text} answer",
        "max_text_tokens": 64,
        **judge,
    }


def answers(one: Detected) -> dict[int, dict[str, Any]]:
    """The judge's rows by id."""
    rows = (
        pyarrow.dataset.dataset(sorted(map(str, one.judged.glob("*.parquet"))))
        .to_table()
        .to_pylist()
    )
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}


def texts_of(one: Detected) -> dict[int, str]:
    rows = (
        pyarrow.dataset.dataset(sorted(map(str, one.source.folder.glob("*.parquet"))))
        .to_table()
        .to_pylist()
    )
    return {
        row["id"]: row["text"] for row in rows if row["discarded"] is None and row["id"] < one.count
    }


def test_every_model_of_a_job_gets_its_distribution_and_all_its_samples(
    storage: Path, first: str
) -> None:
    for seed in (1, 2):
        found = distribution(storage, "many", f"base-{seed}")
        assert_complete(
            samples(storage / "many" / "detection" / f"base-{seed}" / "samples"),
            found,
            SAMPLES * REPEATS,
        )
        assert (
            found["work"]["generated"] == SAMPLES * REPEATS and found["tolerance"]["asked"] is None
        )
        assert sum(found["judge_quality"]["records"]) == 10 * len(DOMAINS)
    assert json.loads((storage / "many" / "detection" / "failed.json").read_text()) == {}
    with (storage / "many" / "detection" / "comparison.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["model"], row["domain"]) for row in rows] == [
        (f"base-{seed}", name) for seed in (1, 2) for name in DOMAINS
    ]
    assert all(
        0 <= float(row["low"]) <= float(row["share"]) <= float(row["high"]) <= 1 for row in rows
    )


def test_the_judge_reads_the_texts_of_all_models_and_of_known_domains_once(
    storage: Path, first: str
) -> None:
    judged = [
        int(found[1].replace(",", ""))
        for found in re.finditer(r"\[detection\] (?:[^:]+: )?([\d,]+) texts judged", first)
    ]
    found = [distribution(storage, "many", f"base-{seed}") for seed in (1, 2)]
    texts = sum(one["samples"] - one["discarded"]["total"] for one in found) + 10 * len(DOMAINS)
    assert sum(judged) == texts and "labelled ones among them" in first


def test_the_same_command_generates_and_judges_nothing(storage: Path, again: str) -> None:
    for place, seed in enumerate((1, 2), 1):
        assert (
            f"base-{seed} ({place} of 2): 0 sequences generated, {SAMPLES * REPEATS} were there "
            f"before" in again
        )
    assert "0 texts judged" in again
    assert "[detection] reused in" in again
    assert "engine" not in again


@pytest.mark.usefixtures("ray_cluster", "again")
@pytest.mark.slow
def test_more_samples_then_a_tolerance_make_only_what_is_missing(storage: Path) -> None:
    done, one = detect_here(settings_of(storage, samples=200))
    before = texts_of(one)
    assert (
        one.work == {"generated": 400 - SAMPLES * REPEATS, "judged": one.work["judged"]}
        and one.work["judged"] > 0
        and not done.reused
    )
    assert one.distribution.as_json()["work"]["generated"] == 400 - SAMPLES * REPEATS
    assert one.distribution.as_json()["samples"] == 400

    # A little less than what the first round of 400 gives: a second one has to follow.
    asked = 0.85 * one.distribution.as_json()["tolerance"]["reached"]
    done, one = detect_here(settings_of(storage, samples=1000, tolerance=asked))
    found = one.distribution.as_json()
    assert found["tolerance"] == {
        "asked": asked,
        "reached": found["tolerance"]["reached"],
        "rounds": one.rounds,
        "cap": 2000,
    }
    assert found["tolerance"]["reached"] <= asked
    assert one.rounds >= 2 and 400 < one.count < 2000
    assert found["samples"] == one.count
    assert one.work["generated"] == one.count - 400
    after = texts_of(one)
    assert {number: after[number] for number in before} == before
    assert set(after) == set(answers(one))


@pytest.mark.usefixtures("ray_cluster", "again")
def test_a_classifiers_answers_are_those_of_transformers(storage: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    config = settings_of(storage, models=[str(storage / "base-2")])
    done, one = detect_here(config)
    assert done.reused
    path, texts, rows = storage / "classifier", texts_of(one), answers(one)
    tokenizer, network = (
        AutoTokenizer.from_pretrained(path),
        AutoModelForSequenceClassification.from_pretrained(path).eval(),
    )
    chosen = [[label.casefold() for label in CLASSES].index(name) for name in DOMAINS]
    assert max(len(text.split()) for text in texts.values()) > LONGEST  # one has to be cut
    for number in sorted(texts)[:20]:
        ids = torch.tensor([tokenizer(texts[number])["input_ids"][:LONGEST]])
        with torch.inference_mode():
            every = network(ids).logits[0].double().softmax(0)[chosen].numpy()
        np.testing.assert_allclose(rows[number]["mass"], every.sum(), atol=1e-5)
        np.testing.assert_allclose(rows[number]["values"], every / every.sum(), atol=1e-5)
    # the texts differ for the model
    assert len({round(row["values"][0], 3) for row in rows.values()}) > 20


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster", "again")
def test_names_that_begin_alike_take_several_requests_and_sum_to_one(
    storage: Path, tmp_path: Path
) -> None:
    config = settings_of(storage, judge=vllm_judge(storage, labels="names"))
    done, one = detect_here(config)
    assert done.spec.requests == 2
    rows, texts = answers(one), texts_of(one)
    assert set(rows) == {2 * number + place for number in texts for place in (0, 1)}
    for number in texts:
        law, (end, contract, criminal) = rows[2 * number]["values"], rows[2 * number + 1]["values"]
        assert np.isclose(sum(law), 1) and np.isclose(end + contract + criminal, 1)
    place_detection(one, done.spec, config.detection, tmp_path)
    table = samples(tmp_path / "samples")
    assert_complete(table, one.distribution.as_json(), SAMPLES * REPEATS)
    number = min(texts)
    law, (end, contract, criminal) = rows[2 * number]["values"], rows[2 * number + 1]["values"]
    expected = [law[0] * end, law[0] * contract, law[0] * criminal, law[1]]
    np.testing.assert_allclose(
        [table[name][number].as_py() for name in DOMAINS], expected, atol=1e-9
    )


@pytest.mark.slow  # the judge of test_pipeline.py is asked by vLLM, too
@pytest.mark.usefixtures("ray_cluster", "again")
def test_options_in_every_order_show_what_the_judge_likes(storage: Path) -> None:
    done, one = detect_here(
        settings_of(storage, judge=vllm_judge(storage, prompt="{options} ? {text} answer"))
    )
    assert done.spec.question.orders == len(DOMAINS)
    positions = one.distribution.as_json()["positions"]
    assert np.isclose(sum(positions["share"]), 1) and len(positions["share"]) == len(DOMAINS)
    assert min(positions["standard_error"]) > 0
    # What the judge gives to A, to B … counts for the domain that stood there.
    rows = answers(one)
    orders = dict(zip(rows, order_of(np.array(list(rows)), len(DOMAINS)), strict=True))
    by_letter = [
        np.mean([row["values"] for number, row in rows.items() if orders[number] == order], axis=0)
        for order in range(4)
    ]
    np.testing.assert_allclose(positions["share"], np.mean(by_letter, axis=0), atol=1e-9)
    shares = [np.roll(row["values"], orders[number]) for number, row in rows.items()]
    np.testing.assert_allclose(
        one.distribution.as_json()["share"], np.mean(shares, axis=0), atol=1e-9
    )


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster", "again")
def test_written_labels_count_whole_and_unreadable_answers_are_kept(
    storage: Path, tmp_path: Path
) -> None:
    config = settings_of(storage, judge=vllm_judge(storage, answer="label", answer_tokens=4))
    done, one = detect_here(config)
    rows = answers(one)
    assert set(rows) == set(texts_of(one))
    read = [row for row in rows.values() if row["discarded"] is None]
    unread = [row for row in rows.values() if row["discarded"] is not None]
    assert read and unread, "this judge is to do both"
    assert all(sorted(row["values"]) == [0, 0, 0, 1] for row in read)
    assert all(np.isnan(row["values"]).all() for row in unread)
    place_detection(one, done.spec, config.detection, tmp_path)
    table = samples(tmp_path / "samples")
    assert_complete(table, one.distribution.as_json(), SAMPLES * REPEATS)
    kept = {row["id"]: row for row in table.to_pylist()}
    for row in rows.values():
        assert (
            kept[row["id"]]["answer"] == row["answer"]
            and kept[row["id"]]["discarded"] == row["discarded"]
        )
    assert any(row["answer"].strip() for row in unread)
    reasons = one.distribution.as_json()["discarded"]["reasons"]
    assert sum(reasons.get(reason, 0) for reason in {row["discarded"] for row in unread}) == len(
        unread
    )


def test_named_domains_are_measured_on_their_own_records_even_if_called_like_the_microworlds(
    storage: Path,
) -> None:
    """Without `labelled` these are the held-out ones; the microworld has a law and a medicine
    too.
    """
    tree = yaml.safe_load((storage / "job.yaml").read_text()) | {
        "base": {"rows": 3600, "judge_rows": 0}
    }
    for name in DOMAINS:
        tree["domains"][name] = {"train": tree["domains"][name]["train"]}
    config = parse(tree)
    prepared, _ = prepare(config, False, True)
    assert prepared.domains == config.domains
