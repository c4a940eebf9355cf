"""Detection jobs in processes that can be killed, and what they left in the cache until then."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow.dataset
import yaml
from detect_jobs import DOMAINS, job
from processes import patience

COUNT, REPEATS = 600, 2
# seconds until a job has come to a certain point; an engine starts in 20 to 100, as busy as the
# machine is
PATIENCE = 200.0


def settings(folder: Path, run: str, models: list[Path], **detection: Any) -> dict[str, Any]:
    """Engines take few rows at a time, so that there are many parts and a time between them."""
    engine = {"batch_size": 16}
    judge = {
        "path": str(folder / "judge"),
        "prompt": "? {text} answer",
        "labels": "names",
        "max_text_tokens": 128,
        "engine": engine,
    }
    return {
        "run": run,
        "storage": str(folder),
        "device": "cpu",
        "base": {"rows": 60, "judge_rows": 0},
        "domains": {
            name: {
                "train": f"{folder}/{name}.train.jsonl",
                "labelled": f"{folder}/{name}.labelled.jsonl",
            }
            for name in DOMAINS
        },
        "detection": {
            "models": [str(model) for model in models],
            "samples": COUNT // REPEATS,
            "repeats": REPEATS,
            "generation": {"max_tokens": 100},
            "engine": engine,
            "judge": judge,
        }
        | detection,
    }


def write(folder: Path, name: str, tree: dict[str, Any]) -> Path:
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def quick_judge(folder: Path) -> dict[str, Any]:
    """A classifier: no engine to wait for."""
    return {"kind": "classifier", "path": str(folder / "classifier"), "max_text_tokens": 64}


class Job:
    """A running job whose output is kept in a file; all its processes are known, and gone once it
    is killed.
    """

    def __init__(self, config: Path, folder: Path, name: str):
        self.log = folder / f"{name}.log"
        command, environment = job(config)
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=environment | {"TMPDIR": str(folder)},
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    @property
    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def wait_until(self, there: Callable[[], bool]) -> None:
        end = time.monotonic() + patience(PATIENCE)
        while not there():
            assert self.process.poll() is None, f"the job ended too early:\n{self.said}"
            assert time.monotonic() < end, f"the job does not come that far:\n{self.said}"
            time.sleep(0.01)

    def kill_engine(self) -> None:
        engines = []
        for child in self.children:
            with suppress(psutil.NoSuchProcess):
                if "VLLM::EngineCore" in " ".join(child.cmdline()):
                    engines.append(child)
        assert engines
        for engine in engines:
            engine.kill()

    def kill(self) -> None:
        """``kill -9`` of the driver; then nothing that it started may write any more."""
        if self.process.poll() is None:
            children = self.children
            self.process.kill()
            self.process.wait()
            _, left = psutil.wait_procs(children, timeout=15)
            for child in left:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            psutil.wait_procs(left, timeout=15)

    def finish(self) -> int:
        return self.process.wait(patience(PATIENCE))


@contextmanager
def running(config: Path, folder: Path, name: str) -> Iterator[Job]:
    started = Job(config, folder, name)
    try:
        yield started
    finally:
        started.kill()


def parts(folder: Path) -> dict[Path, int]:
    return {part: part.stat().st_mtime_ns for part in folder.glob("*.parquet")}


def ids(found: dict[Path, int]) -> list[int]:
    """All ids in the parts, as often as they are there."""
    return (
        sorted(
            pyarrow.dataset.dataset(list(map(str, found)))
            .to_table(columns=["id"])["id"]
            .to_pylist()
        )
        if found
        else []
    )


def stores(folder: Path, kind: str, texts: str) -> list[Path]:
    """Folders of the cache whose about.json names ``texts``: the model, or the store that was
    judged.
    """
    abouts = (folder / ".cache" / kind).glob("*/about.json")
    return [about.parent for about in abouts if texts in json.loads(about.read_text()).values()]
