"""Training records that hold what is asked later are found by their question and by their text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import write_store
from transformers import AutoTokenizer

from versatune_ray.domains import DomainPaths, contamination, load_domains
from versatune_ray.domains.contamination import Asked, contaminated, mark
from versatune_ray.domains.example import Example, prompt_key
from versatune_ray.domains.records import Question
from versatune_ray.domains.store import TokenStore
from versatune_ray.settings.loading import load

RUN = list(range(10, 23))  # thirteen tokens


@pytest.fixture
def asked(tiny_model: Path) -> Asked:
    question = "w5 " + " ".join(f"w{token}" for token in RUN)
    return Asked(
        [Question(question, "w6"), Question("w30 w31", "w7")],
        AutoTokenizer.from_pretrained(tiny_model),
    )


def store(folder: Path, rows: list[list[int]]) -> TokenStore:
    return TokenStore(write_store(folder, [(row, 1) for row in rows]))


@pytest.mark.parametrize("chunk", [1, 20, 1 << 22])
def test_thirteen_tokens_in_a_row_are_a_copy_and_twelve_are_not(
    asked: Asked, tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contamination, "_CHUNK", chunk)
    rows = [
        [1, *RUN, 2],
        [1, *RUN[:12], 2, 3],
        [3, 3],
        # the run is there, but of two records
        [9, 8, *RUN[:6]],
        [*RUN[6:], 4],
        RUN,
        [1, 5, *RUN[:-1], 40],  # with w5 before it, it is another run of the same question
    ]
    exact, shared = contaminated(store(tmp_path / "s", rows), asked)
    assert shared.tolist() == [True, False, False, False, False, True, True]
    assert not exact.any()


def test_a_run_that_many_records_have_is_a_phrase(asked: Asked, tmp_path: Path) -> None:
    ten, eleven = ([[number, *RUN] for number in range(23, 23 + n)] for n in (10, 11))
    assert contaminated(store(tmp_path / "ten", ten), asked)[1].all()
    assert not contaminated(store(tmp_path / "eleven", eleven), asked)[1].any()


def test_the_same_question_in_other_case_and_spacing_is_the_same(
    asked: Asked, tmp_path: Path
) -> None:
    folder = write_store(tmp_path / "s", [([3, 4, 5], 1), ([3, 4, 6], 1)])
    keys = [
        prompt_key(
            Example.chat([{"role": "user", "content": text}, {"role": "assistant", "content": "a"}])
        )
        for text in (" W30\n w31 ", "w30 w32")
    ]
    np.save(folder / "prompts.npy", np.array(keys, np.uint64))
    exact, shared = contaminated(TokenStore(folder), asked)
    assert exact.tolist() == [True, False] and not shared.any()


def test_nothing_asked_is_nothing_found(tiny_model: Path, tmp_path: Path) -> None:
    nothing = Asked([], AutoTokenizer.from_pretrained(tiny_model))
    for found in contaminated(store(tmp_path / "s", [RUN, RUN]), nothing):
        assert found.tolist() == [False, False]


def test_what_is_asked_is_counted_and_left_out_on_request(tiny_model: Path, tmp_path: Path) -> None:
    question = " ".join(f"w{token}" for token in RUN)
    (tmp_path / "exam.jsonl").write_text(json.dumps({"question": question, "answer": "w3"}) + "\n")
    folder = write_store(
        tmp_path / "law", [([1, *RUN], 1), ([3, 4, 5], 1), ([5, 4, 3], 1), ([6, 4, 3], 1)]
    )
    paths = {"law": DomainPaths(folder, write_store(tmp_path / "v", [([9, 9, 9], 1)]))}
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    given = [
        f"model.path={tiny_model}",
        f"domains.law={{train: {tmp_path}/a.jsonl, questions: {tmp_path}/exam.jsonl}}",
        f"domains.code={tmp_path}/b.jsonl",
    ]
    kept = {}
    for policy in ("count", "remove", "ignore"):
        config = load([], [*given, f"data.contaminated={policy}"])
        marked, counts = mark(config, paths, tokenizer, tmp_path / "cache")
        assert counts == ({} if policy == "ignore" else {"law": {"ask": 0, "share": 1}})
        found = load_domains(marked, config.data)["law"]
        kept[policy] = found.train.indices.tolist()
        assert found.counts["contaminated_removed"] == (policy == "remove")
        assert (marked["law"].key == paths["law"].key) == (policy != "remove")
    assert kept == {"count": [0, 1, 2, 3], "remove": [1, 2, 3], "ignore": [0, 1, 2, 3]}


def test_questions_are_read_by_the_names_of_their_domain(tiny_model: Path, tmp_path: Path) -> None:
    exam, names = tmp_path / "exam.jsonl", "{prompt: ask, response: say}"
    exam.write_text(json.dumps({"ask": " ".join(f"w{token}" for token in RUN), "say": "w3"}) + "\n")
    law = write_store(tmp_path / "law", [([1, *RUN], 1)])
    paths = {"law": DomainPaths(law, law)}
    given = [
        f"model.path={tiny_model}",
        f"domains.law={{train: a.jsonl, questions: {exam}, fields: {names}}}",
        "domains.code=b.jsonl",
    ]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    _, counts = mark(load([], given), paths, tokenizer, tmp_path / "cache")
    assert counts == {"law": {"ask": 0, "share": 1}}
    exam.unlink()  # what is ignored is not even read
    ignored = load([], [*given, "data.contaminated=ignore"])
    assert mark(ignored, paths, tokenizer, tmp_path / "cache") == (paths, {})
