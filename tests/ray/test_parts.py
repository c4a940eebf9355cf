"""Parts: every finished batch is on disk at once, whole, and only once."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from versatune_ray.errors import UserError, one_line
from versatune_ray.runs.parts import finished_ids, read_rows, write_parts

SCHEMA = {"id": pa.int64(), "text": pa.string(), "discarded": pa.string()}


def rows(ids: list[int], fail_at: int | None = None) -> Any:
    import ray

    def answer(row: dict[str, Any]) -> dict[str, Any]:
        if row["id"] == fail_at:
            time.sleep(5)  # the other batches are done by then
            raise RuntimeError("the engine is gone")
        return {"id": row["id"], "text": str(row["id"]), "discarded": None}

    return ray.data.from_items([{"id": i} for i in ids], override_num_blocks=5).map(answer)


def test_an_interrupted_run_keeps_its_finished_batches_and_the_next_does_the_rest(
    ray_cluster: None, tmp_path: Path
) -> None:
    with pytest.raises(Exception, match="the engine is gone"):
        write_parts(rows(list(range(50)), fail_at=49), [tmp_path], SCHEMA, print)
    kept = set(finished_ids(tmp_path).tolist())
    assert 0 < len(kept) < 50 and 49 not in kept
    write_parts(rows([i for i in range(50) if i not in kept]), [tmp_path], SCHEMA, print)
    assert sorted(finished_ids(tmp_path)) == list(range(50))


def test_a_batch_computed_twice_is_there_once(ray_cluster: None, tmp_path: Path) -> None:
    for _ in range(2):
        write_parts(rows(list(range(20))), [tmp_path], SCHEMA, print)
    assert sorted(finished_ids(tmp_path)) == list(range(20))


def test_a_column_without_any_value_keeps_its_type(ray_cluster: None, tmp_path: Path) -> None:
    write_parts(rows([1, 2]), [tmp_path], SCHEMA, print)
    assert (
        pa.parquet.read_schema(next(tmp_path.glob("*.parquet"))).field("discarded").type
        == pa.string()
    )


def test_a_part_half_written_by_a_killed_run_is_neither_read_nor_kept(
    ray_cluster: None, tmp_path: Path
) -> None:
    (tmp_path / "dead.tmp").write_bytes(b"PAR1")
    assert len(finished_ids(tmp_path)) == 0
    write_parts(rows([1, 2]), [tmp_path], SCHEMA, print)
    assert sorted(finished_ids(tmp_path)) == [1, 2]
    assert not (tmp_path / "dead.tmp").exists()


def test_an_empty_or_missing_folder_has_no_finished_rows(tmp_path: Path) -> None:
    assert len(finished_ids(tmp_path / "nowhere")) == 0
    assert len(finished_ids(tmp_path)) == 0


def test_rows_of_several_stores_go_to_their_folders(ray_cluster: None, tmp_path: Path) -> None:
    import ray

    folders = [tmp_path / "a", tmp_path / "b"]
    plan = ray.data.from_items(
        [{"id": i, "store": i % 2, "text": "", "discarded": None} for i in range(10)]
    )
    assert write_parts(plan, folders, SCHEMA, print) == 10
    assert [sorted(finished_ids(folder)) for folder in folders] == [
        [0, 2, 4, 6, 8],
        [1, 3, 5, 7, 9],
    ]


def test_a_request_that_failed_is_not_finished_and_gives_way_to_its_repetition(
    tmp_path: Path,
) -> None:
    schema = {"id": pa.int64(), "text": pa.string(), "failed": pa.bool_()}
    for name, rows in (("x", [(0, "", True), (1, "one", False)]), ("y", [(0, "zero", False)])):
        table = pa.Table.from_pylist(
            [dict(zip(schema, row, strict=True)) for row in rows], pa.schema(list(schema.items()))
        )
        pa.parquet.write_table(table, tmp_path / f"{name}.parquet")
    assert finished_ids(tmp_path).tolist() == [0, 1]
    assert read_rows(tmp_path, schema, ["id", "text"]).to_pylist() == [
        {"id": 0, "text": "zero"},
        {"id": 1, "text": "one"},
    ]
    (tmp_path / "y.parquet").unlink()
    assert finished_ids(tmp_path).tolist() == [1]
    assert read_rows(tmp_path, schema, ["id", "text"])["text"].to_pylist() == ["", "one"]


def test_a_folder_without_parts_has_no_rows(tmp_path: Path) -> None:
    assert read_rows(tmp_path, SCHEMA | {"failed": pa.bool_()}, ["id"]).num_rows == 0


def test_an_error_of_a_worker_arrives_as_it_was_raised(ray_cluster: None, tmp_path: Path) -> None:
    import ray

    def refuse(row: dict[str, Any]) -> dict[str, Any]:
        raise UserError("file.jsonl: line 3: no text")

    with pytest.raises(UserError) as caught:
        write_parts(ray.data.from_items([{"id": 0}]).map(refuse), [tmp_path], SCHEMA, print)
    assert one_line(caught.value) == "file.jsonl: line 3: no text"
