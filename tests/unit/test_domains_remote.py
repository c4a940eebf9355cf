"""Records in an object store: read through pyarrow, from a server on this machine."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from versatune_ray.domains.fingerprint import fingerprint
from versatune_ray.domains.ranges import in_one_piece, ranges, read_range, size_of
from versatune_ray.domains.readers import read_records
from versatune_ray.domains.remote import locate
from versatune_ray.domains.spec import Input, expand
from versatune_ray.errors import UserError

server = pytest.importorskip("moto.server")
ROWS = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "dé"}]


@pytest.fixture(scope="module")
def query() -> Iterator[str]:
    """Of URIs, to reach the server."""
    s3 = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    s3.start()
    host, port = s3.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "key")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield f"?endpoint_override={host}:{port}&scheme=http"
    s3.stop()


@pytest.fixture(scope="module")
def files(query: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the bucket holds, in a local folder: one file of each kind."""
    local = tmp_path_factory.mktemp("sources")
    text = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    (local / "law 1.jsonl").write_bytes(text)  # with a space, which no URI may have
    (local / "law 2.jsonl.gz").write_bytes(gzip.compress(text))
    (local / "law 3.jsonl.zst").write_bytes(pa.compress(text, codec="zstd", asbytes=True))
    pq.write_table(pa.Table.from_pylist(ROWS), local / "law 4.parquet")
    (local / "_left").write_bytes(b"")
    store, _ = pyarrow.fs.FileSystem.from_uri(f"s3://bucket/{query}&allow_bucket_creation=true")
    store.create_dir("bucket")
    for file in local.iterdir():
        with store.open_output_stream(f"bucket/some/law/{file.name}", compression=None) as stream:
            stream.write(file.read_bytes())
    return local


def test_a_folder_of_a_bucket_holds_what_the_same_folder_here_holds(
    files: Path, query: str
) -> None:
    here = expand(str(files), "domains.law.train")
    there = expand(f"s3://bucket/some/law{query}", "domains.law.train")
    assert [source.format for source in there] == ["jsonl", "jsonl", "jsonl", "parquet"]
    for one, other in zip(here, there, strict=True):
        assert [row.record for row in read_records(other)] == ROWS, other
        assert fingerprint([other], "content") == fingerprint([one], "content")


def test_objects_are_read_in_ranges(files: Path, query: str) -> None:
    for name in ("law 1.jsonl", "law 4.parquet"):
        (source,) = expand(f"s3://bucket/some/law/{name}{query}", "domains.law.train")
        size = size_of(source)
        assert size == (files / name).stat().st_size
        parts = ranges(source, size, size // 2)
        assert len(parts) > 1
        assert in_one_piece(source) is None
        assert [row.record for part in parts for row in read_range(source, part)] == ROWS


def test_an_object_is_known_by_its_place_size_and_version(files: Path, query: str) -> None:
    (source,) = expand(f"s3://bucket/some/law/law 1.jsonl{query}", "domains.law.train")
    before = fingerprint([source])
    assert fingerprint([source]) == before
    found = locate(source.path)
    text = (files / "law 1.jsonl").read_bytes()
    try:
        with found.fs.fs.open_output_stream(found.path) as stream:
            stream.write(text.replace(b"a", b"e"))  # of the same size, perhaps in the same second
        assert fingerprint([source]) != before
    finally:
        with found.fs.fs.open_output_stream(found.path) as stream:
            stream.write(text)
    gone = Input(source.path.replace("law 1", "law 0"), "gone", "jsonl")
    with pytest.raises(UserError, match="gone: cannot be read: no such file"):
        fingerprint([gone])


@pytest.mark.parametrize(
    "pattern, names",
    [
        ("law 1.jsonl", ["law 1.jsonl"]),
        ("law ?.jsonl*", ["law 1.jsonl", "law 2.jsonl.gz", "law 3.jsonl.zst"]),
        ("*.parquet", ["law 4.parquet"]),
    ],
)
def test_files_and_patterns_of_a_bucket(
    files: Path, query: str, pattern: str, names: list[str]
) -> None:
    found = expand(f"s3://bucket/some/law/{pattern}{query}", "domains.law.train")
    assert [source.path for source in found] == [
        f"s3://bucket/some/law/{name}{query}" for name in names
    ]
    assert all(locate(source.path).fs.isfile(locate(source.path).path) for source in found)


@pytest.mark.parametrize("place", ["bucket/none.jsonl", "bucket/none/*.jsonl", "nobucket/a.jsonl"])
def test_what_is_not_there_is_one_line_with_its_key(files: Path, query: str, place: str) -> None:
    with pytest.raises(UserError, match=r"^(file not found: )?s3://.*\(domains\.law\.train\)$"):
        expand(f"s3://{place}{query}", "domains.law.train")


def test_the_rest_is_read_through_fsspec(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(ROWS[0]) + "\n")
    (source,) = expand(f"file://{file}", "domains.law.train")
    assert [row.record for row in read_records(source)] == ROWS[:1]
    with pytest.raises(UserError, match=r"nowhere://a\.jsonl: cannot be opened: .*nowhere"):
        expand("nowhere://a.jsonl", "domains.law.train")
