"""Tasks of lm-evaluation-harness by name, without listing its 14,000 files; and ours."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

TASKS = Path(__file__).with_name("tasks")


def edited(index: Mapping[str, Any], task: str) -> str:
    """What changes when someone edits a task, or one of the group that it is: a hash of its
    settings and of the YAML and Python files beside them.
    """
    digest, folders = hashlib.sha256(), set[Path]()
    for name in _members(index, task):
        settings, file = index[name].cfg or {}, index[name].yaml_path
        digest.update(json.dumps([name, settings], sort_keys=True, default=str).encode())
        if file is not None:
            folders.add(Path(file).parent)
    for file in sorted(file for folder in folders for file in folder.iterdir()):
        if file.suffix in (".yaml", ".py"):
            digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _members(index: Mapping[str, Any], task: str) -> list[str]:
    """A task and, if it is a group or a tag, what belongs to it, as far as ``index`` knows it."""
    waiting, seen = [task], list[str]()
    while waiting:
        name = waiting.pop()
        if name not in seen and name in index:
            seen.append(name)
            waiting += sorted(_named_by(index[name]), reverse=True)
    return seen


def _named_by(entry: Any) -> set[str]:
    """What belongs to a group or a tag; nothing to a task."""
    if entry.cfg is None:  # a tag
        return set(entry.tags)
    parts = entry.cfg.get("task")
    if not isinstance(parts, list):  # of a task: its own name
        return set()
    named = [part if isinstance(part, str) else part.get("task") for part in parts]
    return {name for name in named if isinstance(name, str)}


def task_manager(names: Sequence[str] = ()) -> Any:
    """A ``TaskManager`` of our tasks and of the harness's families that speak of ``names``; ours
    win where both have a name.

    The harness has 14,000 files: to list them all takes some ten seconds, to search them for a
    word one.
    """
    from lm_eval.tasks import TaskManager

    wanted, families, root = set(names), set[str](), _harness_tasks()
    while True:
        # of a name that two families have, the first is taken: where all are listed as well
        folders = [str(root / family) for family in sorted(families, reverse=True)]
        manager = TaskManager(include_path=[*folders, str(TASKS)], include_defaults=False)
        index = manager.task_index
        named = {
            name
            for task in wanted
            for member in _members(index, task)
            for name in _named_by(index[member])
        }
        missing = (wanted | named) - index.keys()
        more = _families(missing) - families if missing else set()
        if not more:
            return manager
        families |= more


def _harness_tasks() -> Path:
    import lm_eval.tasks

    return Path(str(lm_eval.tasks.__file__)).parent


def _families(names: Iterable[str]) -> set[str]:
    """The folders of the harness in which a file speaks of one of ``names``."""
    root = _harness_tasks()
    word = re.compile(
        b"|".join(rb"(?<!\w)" + re.escape(name.encode()) + rb"(?!\w)" for name in names)
    )
    return {
        file.relative_to(root).parts[0]
        for file in root.rglob("*.yaml")
        if word.search(file.read_bytes())
    }


def declared() -> set[str]:
    """Names of the harness's tasks and groups and of ours, without reading what they say."""
    line = re.compile(rb"^\"?(?:task|group)\"?:[ \"']*([\w.-]+)", re.MULTILINE)
    return {
        name.decode()
        for root in (_harness_tasks(), TASKS)
        for file in root.rglob("*.yaml")
        for name in line.findall(file.read_bytes())
    }
