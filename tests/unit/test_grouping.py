"""Domains out of one heap: groups, their names, records that come back as they were, the page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("sklearn")

from versatune_ray.domains.encoding import packed
from versatune_ray.domains.records import to_example
from versatune_ray.errors import UserError
from versatune_ray.grouping import heap
from versatune_ray.grouping.clusters import find_groups, principal_axes, unit
from versatune_ray.grouping.embedding import Words
from versatune_ray.grouping.group import check_group
from versatune_ray.grouping.heap import RECORD, as_record, records_of
from versatune_ray.grouping.naming import names_of, telling_words
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
