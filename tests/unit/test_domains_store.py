"""The token store keeps what was appended, and shows it in any order and process."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from token_stores import INPUTS, batch, store

from versatune_ray.domains import Input, Records, TokenStore, TokenStoreWriter, store_writer


def test_records_come_back_as_they_were_appended(tmp_path: Path) -> None:
    with TokenStoreWriter(tmp_path / "s", INPUTS, {"max_length": 8}) as writer:
        writer.append(batch([[1, 2, 3], [4]], [2**64 - 1, 5]), cut=1)
        writer.append(batch([], []))
        writer.append(batch([[5, 6, 7, 8]], [6], first=4), over_long_kept=1)
        writer.reject(0, 3, "no answer")
        writer.reject(1, 9, "no answer")
        writer.reject(1, 2, "broken JSON")
    found = TokenStore(tmp_path / "s")
    assert [found.tokens(i).tolist() for i in range(len(found))] == [[1, 2, 3], [4], [5, 6, 7, 8]]
    assert [found.mask(i).tolist() for i in range(len(found))] == [
        [False, True, True],
        [True],
        [False, False, True, True],
    ]
    assert found.tokens(0).dtype == np.int32
    assert found.mask(0).dtype == np.bool_
    assert found.hashes.tolist() == [2**64 - 1, 5, 6]
    assert (
        found.lengths.tolist(),
        found.response_tokens.tolist(),
        found.response_bytes.tolist(),
    ) == ([3, 1, 4], [2, 1, 2], [30, 10, 40])
    assert [found.location(i) for i in range(3)] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:4"]
    expected = {
        "read": 6,
        "kept": 3,
        "bad": {"no answer": 2, "broken JSON": 1},
        "cut": 1,
        "over_long_kept": 1,
        "tokens": 8,
        "response_tokens": 5,
    }
    assert {name: found.meta[name] for name in expected} == expected
    assert found.meta["settings"] == {"max_length": 8}
    assert found.bad_examples() == [
        "a.jsonl:3: no answer",
        "b.parquet#9: no answer",
        "b.parquet#2: broken JSON",
    ]
    assert (
        found.bad_examples([Input("", "moved.jsonl", "jsonl"), INPUTS[1]])[0]
        == "moved.jsonl:3: no answer"
    )


def test_an_empty_store_opens(tmp_path: Path) -> None:
    with TokenStoreWriter(tmp_path / "s") as writer:
        writer.reject(0, 1, "x")
    empty = TokenStore(tmp_path / "s")
    assert (len(empty), empty.lengths.tolist(), empty.hashes.tolist(), empty.meta["read"]) == (
        0,
        [],
        [],
        1,
    )
    assert Records(empty, np.array([], np.int64)).lengths.tolist() == []


def test_a_store_that_was_not_finished_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), TokenStoreWriter(tmp_path / "s") as writer:
        writer.append(batch([[1, 2]], [1]))
        assert not (tmp_path / "s").exists()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_batches_that_do_not_add_up_are_refused(tmp_path: Path) -> None:
    good = batch([[1, 2]], [1])
    for wrong in (
        good._replace(lengths=np.array([3])),
        good._replace(lengths=np.array([2, 0])),
        good._replace(mask=good.mask[:1]),
    ):
        with (
            pytest.raises(ValueError, match="lengths must be positive"),
            TokenStoreWriter(tmp_path / "s") as writer,
        ):
            writer.append(wrong)


def test_a_view_shows_its_records_in_its_order_also_in_another_process(tmp_path: Path) -> None:
    records = Records(store(tmp_path / "s", [5, 6, 7, 8]), np.array([3, 0, 3]))
    data = pickle.dumps(records)
    assert len(data) < 1000
    for view in (records, pickle.loads(data)):
        assert len(view) == 3
        assert [view[i][0].tolist() for i in range(3)] == [[3, 7, 7], [0, 7, 7], [3, 7, 7]]
        assert view[0][1].tolist() == [False, True, True]
        assert view.hashes.tolist() == [8, 5, 8]
        assert (
            view.lengths.tolist(),
            view.response_tokens.tolist(),
            view.response_bytes.tolist(),
        ) == ([3] * 3, [2] * 3, [30] * 3)
        assert view.location(0) == "a.jsonl:4"


def test_a_store_that_cannot_be_sent_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Path) -> None:
        raise OSError("no room")

    monkeypatch.setattr(store_writer, "push", full)
    with pytest.raises(OSError, match="no room"), TokenStoreWriter(tmp_path / "s") as writer:
        writer.append(batch([[1, 2]], [1]))
    assert list(tmp_path.iterdir()) == []
