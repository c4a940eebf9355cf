"""From stored sequences and answers to ``distribution.json``, by numbers worked out by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from versatune_ray.detection.account import account, comparison, place_detection, write_comparison
from versatune_ray.detection.answers import unjudged
from versatune_ray.detection.detect import _labelled
from versatune_ray.detection.distribution_file import Distribution, starting_share
from versatune_ray.detection.generate import GENERATED, Generator, text_row
from versatune_ray.detection.judge import KINDS
from versatune_ray.detection.judge_spec import JUDGED, JudgeSpec
from versatune_ray.detection.prompt import Question
from versatune_ray.detection.summary import summarize
from versatune_ray.detection.texts import Detected, Labelled, Texts, read_texts, stored_texts
from versatune_ray.domains.fingerprint import fingerprint
from versatune_ray.domains.spec import expand
from versatune_ray.errors import UserError
from versatune_ray.runs.cache import key_of
from versatune_ray.settings import Detection, Engine, Generation, Judge
from versatune_ray.settings.loading import load

KEYS = [
    "name",
    "model",
    "domains",
    "share",
    "ci95",
    "repeats",
    "repeats_differ",
    "samples",
    "tokens",
    "texts",
    "discarded",
    "generations",
    "tolerance",
    "judge",
    "mass",
    "judge_quality",
    "positions",
    "corrected",
    "used",
    "known",
    "total_variation",
    "published",
    "settings",
    "work",
]
KEPT = ("law", "code")
SETTINGS = Detection(samples=4, repeats=2, tolerance=0.01)


def answer(number: int, law: float, mass: float = 0.9) -> dict[str, Any]:
    return {
        "id": number,
        "values": [law, 1 - law],
        "mass": mass,
        "answer": None,
        "discarded": None,
        "failed": False,
    }


def write(rows: list[dict[str, Any]], schema: dict[str, pa.DataType], folder: Path) -> Path:
    folder.mkdir()
    table = pa.Table.from_pylist(rows, pa.schema(list(schema.items())))
    pyarrow.parquet.write_table(table, folder / "0.parquet")
    return folder


@pytest.fixture
def spec() -> JudgeSpec:
    judge = Judge(kind="classifier", path="/models/judge")
    question = Question(("law", "code"), {}, judge.prompt or "{text}", judge.labels, False)
    return JudgeSpec(judge, question, "abc", trust_remote_code=False, gpu=False)


@pytest.fixture
def detected(tmp_path: Path) -> Detected:
    """Eight sequences, of which number 3 is empty, 6 repeats one token and 7 has no answer yet."""
    rows = [text_row(number, f"text {number}", 10, number == 6) for number in range(8)]
    rows[3] = text_row(3, " ", 0, False)
    generated = write(rows, GENERATED, tmp_path / "generated")
    laws = {0: 0.9, 1: 0.8, 2: 0.7, 4: 0.2, 5: 0.4, 6: 0.6}
    judged = write([answer(*item) for item in laws.items()], JUDGED, tmp_path / "judged")
    source = Generator(
        "base", "/models/base", "f", 1, "<s>", Generation(), 0, Engine(), generated, False
    )
    return Detected(source, judged, 8, 1, {"generated": 3, "judged": 6})


@pytest.fixture
def labelled(tmp_path: Path) -> Labelled:
    rows = [answer(number, law) for number, law in enumerate((0.9, 0.7, 0.2, 0.4))]
    judged = write(rows, JUDGED, tmp_path / "judged-labelled")
    return Labelled(tmp_path / "unread", np.array([0, 0, 1, 1]), judged)


def test_the_distribution_says_shares_and_everything_that_was_left_out(
    detected: Detected, spec: JudgeSpec, labelled: Labelled
) -> None:
    found = summarize(detected, spec, SETTINGS, labelled)
    assert found.share == pytest.approx([0.6, 0.4])  # 3.6 of six sequences
    # numbers 0, 2, 4, 6 are of the first repeat, 1 and 5 of the second
    np.testing.assert_allclose(found.repeats, [[0.6, 0.4], [0.6, 0.4]])
    assert found.discarded.reasons == {"empty generation": 1, "not judged": 1}
    assert (found.samples, found.tokens, found.discarded.total) == (8, 70, 2)
    generations = found.generations
    assert (generations.empty, generations.degenerate, generations.distinct) == (1, 1, 8)
    assert found.judge_quality is not None and found.judge_quality.accuracy == 1
    np.testing.assert_allclose(found.judge_quality.confusion, [[0.8, 0.2], [0.3, 0.7]])
    assert found.work == {"generated": 3, "judged": 6, "reused": 5}
    assert (found.tolerance.asked, found.tolerance.cap) == (0.01, 8)
    # 0.6 = 0.8 π + 0.3 (1 − π)
    corrected = found.as_json()["corrected"]
    assert corrected["share"] == pytest.approx([0.6, 0.4])
    assert starting_share(found.as_json()) == found.share


def test_the_file_keeps_its_keys_in_their_order(
    detected: Detected, spec: JudgeSpec, labelled: Labelled
) -> None:
    content = summarize(detected, spec, SETTINGS, labelled).as_json()
    assert list(content) == KEYS
    assert json.loads(json.dumps(content)) == content
    assert list(content["generations"]) == [
        "empty",
        "degenerate",
        "degenerate_excluded",
        "distinct",
    ]
    assert list(content["tolerance"]) == ["asked", "reached", "rounds", "cap"]
    assert list(content["judge_quality"]) == (
        ["records", "confusion", "recall", "accuracy", "log_loss", "chance", "mass"]
    )
    assert list(content["corrected"]) == ["share", "ci95", "total_variation"]
    assert content["known"] is content["published"] is content["positions"] is None


def test_repeating_sequences_are_left_out_where_this_is_asked_for(
    detected: Detected, spec: JudgeSpec
) -> None:
    settings = SETTINGS.model_copy(update={"exclude_degenerate": True})
    found = summarize(detected, spec, settings, None)
    assert found.share == pytest.approx([0.6, 0.4])  # 3.0 of five
    degenerate = "degenerate generation (a token or a short cycle of them, repeated)"
    assert found.discarded.reasons[degenerate] == 1
    assert found.judge_quality is found.corrected is None


def test_what_the_judge_has_yet_to_read(
    tmp_path: Path, detected: Detected, spec: JudgeSpec
) -> None:
    (file,) = unjudged(spec, 5, detected.texts(exclude_degenerate=False))
    assert (file.store, file.ids.tolist()) == (5, [7])
    # as a plan asks before anything is written
    assert unjudged(spec, 0, Texts(tmp_path / "none", 300, tmp_path / "judged")) == []


def test_what_was_asked_in_parts_is_not_asked_again(tmp_path: Path, spec: JudgeSpec) -> None:
    rows = [text_row(number, f"text {number}", 3, False) for number in range(6)]
    texts = write(rows[3:], GENERATED, tmp_path / "texts")
    schema = pa.schema(list(GENERATED.items()))
    # of a store that became one file on another machine, the parts may still lie here
    for name, some in (("1", rows[:4]), ("2", [rows[2], text_row(2, "", 0, False)])):
        pyarrow.parquet.write_table(pa.Table.from_pylist(some, schema), texts / f"{name}.parquet")
    judged = write([answer(1, 0.5), answer(9, 0.5)], JUDGED, tmp_path / "judged")
    pieces = unjudged(spec, 0, Texts(texts, 5, judged))
    assert sorted(int(number) for piece in pieces for number in piece.ids) == [0, 2, 3, 4]


def test_labelled_texts_follow_what_decides_them(tmp_path: Path, spec: JudgeSpec) -> None:
    lines = [
        {"prompt": f"p{n}", "response": "r", "title": f"t{n}", "kind": n % 2} for n in range(6)
    ]
    for name in ("law", "code"):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def texts(*overrides: str) -> tuple[str, set[str]]:
        own = [
            *(f"domains.{name}={{train: x, validation: {tmp_path}/{name}.jsonl}}" for name in KEPT),
            *("model.path=m", f"storage={tmp_path}/runs", *overrides),
        ]
        found = _labelled(load([], own), spec)
        assert found is not None
        read = pyarrow.parquet.read_table(*found.folder.glob("*.parquet"), columns=["text"])[
            "text"
        ].to_pylist()
        return found.folder.name, {text.partition("\n")[0] for text in read}

    plain, asked = texts()
    assert asked == {f"p{n}" for n in range(6)}
    # as before these keys counted: what is there stays
    files = [fingerprint(expand(str(tmp_path / f"{name}.jsonl"), "x"), "files") for name in KEPT]
    old = {"inputs": [[name, "validation", file] for name, file in zip(KEPT, files, strict=True)]}
    assert plain == key_of(old | {"limit": Judge().records, "fraction": 0.05})
    fields = [f"domains.{name}.fields={{prompt: title}}" for name in KEPT]
    assert texts(*fields)[1] == {f"t{n}" for n in range(6)}
    assert texts(*(f"domains.{name}.where={{kind: 1}}" for name in KEPT))[1] == {"p1", "p3", "p5"}
    assert texts("data.preference=chosen")[0] != plain


def test_ids_may_be_far_apart(tmp_path: Path, spec: JudgeSpec) -> None:
    second = 1 << 40  # where the ids of a grouping's second input begin
    rows = [text_row(number, "text", 3, False) for number in (0, 1, second, second + 1)]
    texts = write(rows, GENERATED, tmp_path / "texts")
    judged = write([answer(1, 0.5), answer(second, 0.5)], JUDGED, tmp_path / "judged")
    (piece,) = unjudged(spec, 0, Texts(texts, second + 2, judged))
    assert piece.ids.tolist() == [0, second + 1]


def test_texts_are_found_where_their_file_became_part_of_another(
    tmp_path: Path, detected: Detected
) -> None:
    folder = detected.source.folder
    some = read_texts(folder / "0.parquet", 1, 3)
    assert some["id"].to_pylist() == [1, 2, 3] and some["text"][1].as_py() == "text 2"
    assert read_texts(folder / "gone.parquet", 1, 3).equals(some)


def test_the_texts_of_a_run_are_found_in_its_storage_and_nowhere_else(tmp_path: Path) -> None:
    store = ".cache/generated/0123456789abcdef"
    run = tmp_path / "storage" / "a" / "run" / "detection" / "m" / "distribution.json"
    assert stored_texts(run, store) is None
    (tmp_path / "storage" / store).mkdir(parents=True)
    assert stored_texts(run, store) == tmp_path / "storage" / store
    for elsewhere in ("..", "/etc", ".cache/generated/../0123456789abcdef", f"{store}/x"):
        assert stored_texts(run, elsewhere) is None


def test_no_judged_sequence_is_an_error_with_the_reasons(
    detected: Detected, spec: JudgeSpec
) -> None:
    detected.count = 1
    with pytest.raises(UserError, match="/models/base: 1 of 1 sequences could be judged"):
        summarize(detected, spec, SETTINGS, None)


def test_a_person_is_told_what_does_not_fit(
    detected: Detected, spec: JudgeSpec, labelled: Labelled
) -> None:
    found = summarize(detected, spec, SETTINGS, labelled)
    lines = account({"base": found})
    assert lines[0] == (
        "base: 8 sequences, 5 of them reused; 2 discarded (empty generation: 1, not judged: 1)"
    )
    assert lines[1].startswith("base: a tolerance of 1 % is not reached (± ")
    assert lines[2].startswith(
        "judge, on 4 labelled records: accuracy 100.0 %, log loss 0.299 nats"
    )
    assert len(lines) == 3 and account({}) == []
    table = comparison({"base": found})
    assert table[0].split() == ["%", "law", "code"]
    assert table[1].split()[:3] == ["base", "60.0", "±"]


def test_the_runs_folder_gets_samples_and_a_comparison(
    detected: Detected, spec: JudgeSpec, tmp_path: Path
) -> None:
    found = detected.distribution = summarize(detected, spec, SETTINGS, None)
    place_detection(detected, spec, SETTINGS, tmp_path / "run")
    written = (tmp_path / "run" / "distribution.json").read_text()
    assert json.loads(written) == found.as_json()
    samples = pyarrow.parquet.read_table(tmp_path / "run" / "samples")
    assert samples.column_names == (
        ["id", "repeat", "tokens", "law", "code", "answer", "discarded"]
    )
    assert samples["law"][1].as_py() == 0.8 and np.isnan(samples["law"][3].as_py())
    write_comparison({"base": found}, tmp_path / "comparison.csv")
    rows = list(csv.DictReader((tmp_path / "comparison.csv").open()))
    assert [row["domain"] for row in rows] == ["law", "code"]
    assert float(rows[0]["share"]) == pytest.approx(0.6)
    assert (rows[0]["corrected"], rows[0]["published"], rows[0]["known"]) == ("", "", "")


def test_every_kind_of_judge_that_can_be_set_is_in_the_table() -> None:
    kinds = Judge.model_fields["kind"].annotation
    assert set(KINDS) == set(kinds.__args__)  # type: ignore[union-attr]


def test_a_distribution_does_not_change(detected: Detected, spec: JudgeSpec) -> None:
    found: Distribution = summarize(detected, spec, SETTINGS, None)
    with pytest.raises(AttributeError):
        found.share = [0.5, 0.5]  # type: ignore[misc]
