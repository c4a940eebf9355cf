"""Domains out of one heap: groups, their names, records that come back as they were, the page."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

pytest.importorskip("sklearn")

from versatune_ray.domains.encoding import packed
from versatune_ray.domains.example import Example
from versatune_ray.domains.records import to_example
from versatune_ray.errors import UserError
from versatune_ray.grouping import heap
from versatune_ray.grouping.clusters import find_groups, principal_axes, unit
from versatune_ray.grouping.embedding import Words
from versatune_ray.grouping.group import _places, check_group
from versatune_ray.grouping.heap import HEAP, RECORD, as_record, records_of
from versatune_ray.grouping.naming import names_of, telling_words
from versatune_ray.grouping.vectors import good_ids
from versatune_ray.grouping.writing import Grouped, write
from versatune_ray.settings.loading import load, parse

TOPICS = {
    "law": ["the court fined the tenant", "a court may fine a landlord", "tenant sues in court"],
    "code": ["python loop over a list", "sort a python list", "a loop in python appends"],
}


def blobs(centres: list[list[float]], each: int, spread: float = 0.05) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.concatenate(
        [rng.normal(centre, spread, (each, len(centre))) for centre in centres]
    ).astype(np.float32)


def test_the_silhouette_finds_how_many_groups_there_are() -> None:
    vectors = blobs([[1, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0, 0]], 30)
    groups = find_groups(vectors, range(2, 8), 128, 0, centred=False)
    assert max(groups.silhouettes, key=groups.silhouettes.__getitem__) == len(groups.centres) == 4
    group, near = groups.assign(vectors)
    assert sorted(np.bincount(group)) == [30] * 4
    assert all(len(set(group[at : at + 30])) == 1 for at in range(0, 120, 30))
    assert near.min() > 0.9


def test_a_vector_goes_to_the_nearest_centre_whatever_its_length() -> None:
    vectors = blobs([[1, 0.2], [0.2, 1], [-1, 0.3]], 20, 0.2)
    groups = find_groups(vectors, [3], 128, 0, centred=True)
    placed = groups.place(vectors)
    distance = ((placed[:, None] - groups.centres) ** 2).sum(axis=-1)
    np.testing.assert_array_equal(groups.assign(vectors)[0], distance.argmin(axis=1))
    moved = groups.mean + 3 * (vectors - groups.mean)
    np.testing.assert_array_equal(groups.assign(moved)[0], groups.assign(vectors)[0])


def test_the_principal_axes_are_those_of_a_singular_value_decomposition() -> None:
    rng = np.random.default_rng(1)
    vectors = (rng.normal(size=(50, 5)) * [5, 3, 1, 0.5, 0.1]).astype(np.float32)
    vectors -= vectors.mean(axis=0)
    axes = principal_axes(vectors, 2)
    right = np.linalg.svd(vectors.astype(np.float64))[2][:2].T
    np.testing.assert_allclose(np.abs(axes.T @ right), np.eye(2), atol=1e-4)
    np.testing.assert_allclose(unit(np.array([[3, 4], [0, 0]])), [[0.6, 0.8], [0, 0]])


def test_too_few_distinct_vectors_are_said_to_be_so() -> None:
    with pytest.raises(ValueError, match="9 records with 1 distinct"):
        find_groups(np.ones((9, 3), np.float32), [2], 128, 0, centred=False)


def test_copies_of_a_few_records_are_as_many_groups() -> None:
    vectors = np.repeat(np.eye(3, dtype=np.float32), 10, axis=0)
    groups = find_groups(vectors, range(2, 11), 128, 0, centred=False)
    assert len(groups.centres) == 3 and groups.silhouettes[3] == pytest.approx(1)
    assert list(groups.silhouettes) == [2, 3]


def test_words_part_topics_and_name_them() -> None:
    texts = [text for said in TOPICS.values() for text in said]
    vectors = Words(texts, 2, 0)(texts)
    group = find_groups(vectors, [2], 128, 0, centred=False).assign(vectors)[0]
    assert len(set(group[:3])) == len(set(group[3:])) == 1 and group[0] != group[3]
    words = telling_words(texts, group, 2)
    # in three of three texts and in no other, against words of two
    assert words[group[0]][0] == "court" and words[group[3]][0] == "python"
    assert names_of(words)[group[0]] == "court-tenant"


def test_a_word_weighs_as_the_formula_says() -> None:
    texts, group = ["apple pear", "apple plum", "plum stone"], np.array([0, 0, 1])
    first, second = telling_words(texts, group, 2)
    # four words in group 0, two in group 1: A = 3. apple 2/4 · ln(1 + 3/2), pear 1/4 · ln 4,
    # plum 1/4 · ln(1 + 3/2); stone 1/2 · ln 4, plum 1/2 · ln(1 + 3/2)
    assert first == ["apple", "pear", "plum"] and second == ["stone", "plum"]


def test_words_that_all_records_have_or_none_do_not_stop_a_judge() -> None:
    alike, none = ["the court fined a tenant"] * 1000, ["…"] * 12
    for texts, said in ((alike, "1000 records .*3 records or more and at most 30% of"), (none, "")):
        with pytest.raises(UserError, match=f"group.embedding=words: no words in .*{said}"):
            Words(texts, 8, 0)
        assert _places(texts, parse({})).shape == (len(texts), 2)


def test_names_differ_and_a_group_without_words_has_a_number() -> None:
    assert names_of([["a", "b", "c"], ["a", "b", "c"], ["a", "b"], []]) == [
        "a-b",
        "a-b-c",
        "group-3",
        "group-4",
    ]


CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": None, "y": 1}}}


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": "Add", "input": "1 and 2", "output": "3"},
        {"question": "Which?", "choices": ["a", "b"], "answer": 1},
        {"text": "a raw text"},
        {"prompt": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "no"},
                    {"role": "user", "content": "r"}], "completion": "yes", "weight": 0.5},
        {"system": "Be brief", "conversations": [{"from": "human", "value": "q"},
         {"from": "gpt", "value": "a"}, {"from": "human", "value": "r"},
         {"from": "gpt", "value": "b", "train": False}]},
        {"messages": [{"role": "user", "content": "q"},
                      {"role": "assistant", "content": "", "tool_calls": [CALL]},
                      {"role": "tool", "content": "{}", "tool_call_id": "c1", "name": "f"},
                      {"role": "assistant", "content": "a", "reasoning_content": "so"}],
         "tools": [{"type": "function", "function": {"name": "f"}}]},
    ],
)  # fmt: skip
def test_a_record_of_any_shape_is_the_same_example_after_it_was_written(
    record: dict[str, Any],
) -> None:
    example = to_example(record)
    table = records_of(pa.chunked_array([[packed(example)]]), np.array([0]))
    assert table.schema == RECORD
    assert to_example(table.to_pylist()[0]) == example
    assert as_record(example)["weight"] == (record.get("weight"))


def test_the_page_shows_names_words_examples_and_a_map() -> None:
    from versatune_ray.grouping.page import page

    one = {"words": ["w"], "records": 3, "share": 0.5, "examples": ["<b>shown</b>"]}
    content = {
        "by": "embedding",
        "embedding": "words",
        "records": 6,
        "ungrouped": 1,
        "silhouettes": {2: 0.25},
        "left_out": {"no answer": 2},
        "domains": [{"name": "law & order"} | one, {"name": "code"} | one],
    }
    text = page(content, blobs([[1, 0], [0, 1]], 3), np.array([0, 0, 0, 1, 1, -1]))
    assert "law &amp; order" in text and "&lt;b&gt;shown" in text and "<svg" in text
    assert "<svg" not in page(content, np.zeros((6, 2), np.float32), np.full(6, -1))
    assert "0.250" in text and "2 were left out: <bdi>no answer</bdi>" in text
    assert "://" not in text, "it loads nothing"


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ({"sources": ["none.jsonl"]}, "file not found: none.jsonl (group.sources)"),
        ({}, "group.sources: missing"),
        ({"by": "judge"}, "detection.judge.path: missing"),
        ({"embedding": "base"}, "model.path: missing"),
    ],
)
def test_what_is_missing_is_told_in_one_line(
    group: dict[str, Any], said: str, tmp_path: Any
) -> None:
    heap = tmp_path / "heap.jsonl"
    heap.write_text('{"text": "a"}\n')
    given = {"sources": [str(heap)]} | group if group else {}
    with pytest.raises(UserError) as error:
        check_group(parse({"group": given}))
    assert str(error.value).startswith(said) and "\n" not in str(error.value)


def test_labels_name_domains() -> None:
    for labels, said in (({"law": "a"}, "the only one"), ({"a/b": "", "c": ""}, "'a/b'")):
        with pytest.raises(UserError, match=said):
            parse({"group": {"labels": labels}})


def test_two_labels_have_two_files_and_the_files_are_no_source_of_their_own(
    tmp_path: Path,
) -> None:
    (tmp_path / "runs/mine/group").mkdir(parents=True)
    heaps = [tmp_path / "heap.jsonl", tmp_path / "runs/mine/group/ungrouped.jsonl"]
    for file in heaps:
        file.write_text("{}\n")

    def check(source: Path, *labels: str) -> None:
        judge = {"judge": {"path": "m"}}
        group = {"sources": str(source), "by": "judge", "labels": dict.fromkeys(labels, "")}
        given = {"run": "mine", "storage": str(tmp_path / "runs")}
        check_group(parse(given | {"group": group, "detection": judge}))

    check(heaps[0], "law", "law & order")
    for labels, said in (
        (("law", "Assignments"), "'Assignments' would be that of 'assignments'"),
        (("law", "ungrouped"), "'ungrouped' would be that of 'ungrouped'"),
        (("law", "LAW"), "'LAW' would be that of 'law'"),
    ):
        with pytest.raises(UserError, match=f"group.labels: the file of {said}"):
            check(heaps[0], *labels)
    with pytest.raises(UserError, match=r"group.sources: .* lies in this run's own group folder"):
        check(heaps[1], "law", "code")


def heap_of(folder: Path, texts: list[str]) -> Path:
    """A heap of raw texts in one part; of none, without parts."""
    folder.mkdir()
    rows = [
        dict.fromkeys(HEAP)
        | {"id": number, "text": text, "location": f"heap:{number}", "left_out": False}
        | {"example": packed(Example((), (), text=text))}
        for number, text in enumerate(texts)
    ]
    if rows:
        table = pa.Table.from_pylist(rows, pa.schema(list(HEAP.items())))
        parquet.write_table(table, folder / "part.parquet")
    return folder


def test_an_empty_heap_has_no_records(tmp_path: Path) -> None:
    assert good_ids(heap_of(tmp_path / "none", [])).size == 0
    assert good_ids(heap_of(tmp_path / "two", ["a", "b"])).tolist() == [0, 1]


def test_domains_that_are_grouped_anew_take_the_place_of_the_old_ones(tmp_path: Path) -> None:
    old = tmp_path / "old.yaml"
    old.write_text(
        "model: {path: m}\n"
        "domains: {law: {train: a.jsonl, where: {split: train}, order: given}, food: b.jsonl}\n"
    )
    folder = tmp_path / "run" / "group"
    folder.mkdir(parents=True)
    for stale in ("gone.parquet", ".law.parquet.0123.tmp"):
        (folder / stale).touch()
    run = SimpleNamespace(
        folder=SimpleNamespace(path=tmp_path / "run", write=lambda *_: None),
        given_config=load([old]),
    )
    group = np.array([0, 1, -1, 0])
    found = Grouped(np.arange(4), group, np.ones(4), np.arange(4), np.zeros((4, 2), "f"), 2)
    domains = [{"name": name, "records": 1, "description": "d"} for name in ("law", "code")]
    write(run, heap_of(tmp_path / "heap", ["a", "b", "c", "d"]), found, {"domains": domains})
    files = sorted(file.name for file in folder.iterdir())
    assert files == [
        "assignments.parquet", "code.parquet", "domains.yaml", "law.parquet", "ungrouped.parquet",
    ]  # fmt: skip
    assert parquet.read_table(folder / "law.parquet")["text"].to_pylist() == ["a", "d"]
    config = load([old, folder / "domains.yaml"])
    assert list(config.domains) == ["law", "code"]
    law = config.domains["law"]
    assert (law.specs("train"), law.where, law.order) == (
        [str(folder / "law.parquet")], {}, "given",
    )  # fmt: skip


def test_null_takes_away_what_an_earlier_source_says_of_the_domains_alone() -> None:
    names = ["model.path=m", "domains={law: a, code: b, food: c}"]
    assert list(load([], [*names, "domains.food="]).domains) == ["law", "code"]
    with pytest.raises(UserError, match=r"domains.food.train: missing"):
        load([], ["model.path=m", "domains={law: a, code: b, food: }"])


def test_a_heap_is_read_anew_where_its_files_or_their_content_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heap, "cached", lambda cache, kind, parts, build: (parts["content"], True))
    file = tmp_path / "a.jsonl"
    config = load([], [f"group.sources={file}"])

    def keys(content: str, time: int) -> list[object]:
        file.write_text(content)
        os.utime(file, (time, time))
        return [
            heap.read_heap(heap.sources(config), tmp_path, by)[0] for by in ("files", "content")
        ]

    first, touched, other = keys("{}\n", 1), keys("{}\n", 2), keys("[]\n", 2)
    assert first[0] != touched[0] and first[1] == touched[1] != other[1]


def test_a_judge_groups_records_without_words_and_says_what_it_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from versatune_ray.grouping import group as job

    folder = heap_of(tmp_path / "heap", ["…"] * 12)
    shares = np.tile([0.9, 0.1], (12, 1))
    shares[4:6], shares[6] = [0.4, 0.6], np.nan  # three are not sure enough, or none
    answers = SimpleNamespace(ids=np.arange(12), shares=shares)
    spec = SimpleNamespace(check_labels=lambda: None, folder=lambda *_: tmp_path)
    for name, value in (
        ("sources", lambda _: [SimpleNamespace(key="group.sources")]),
        ("read_heap", lambda *_: (folder, False)),
        ("judge_spec", lambda *_, **__: spec),
        ("judge", lambda *_: None),
        ("read_answers", lambda *_: answers),
    ):
        monkeypatch.setattr(job, name, value)

    def run(confidence: float) -> Path:
        group = {"sources": ["h"], "by": "judge", "labels": {"law": "statutes", "code": ""}}
        run_folder = SimpleNamespace(
            path=tmp_path / "run",
            step=lambda _, work: work().value,
            write=lambda *_: None,
        )
        config = parse({"group": group | {"confidence": confidence}})
        given = {"folder": run_folder, "given_config": config, "cache": tmp_path}
        return job.group(SimpleNamespace(**given, gpu=lambda: False))

    page = run(0.7)
    said = capsys.readouterr().out
    assert "law: 9 records" in said and "3 records are in no domain: ungrouped.parquet" in said
    tables = {
        file.stem: parquet.read_table(file).num_rows for file in page.parent.glob("*.parquet")
    }
    assert tables == {"law": 9, "ungrouped": 3, "assignments": 12}
    with pytest.raises(UserError, match=r"none of 12 records in a domain; lower group.confidence"):
        run(0.95)
