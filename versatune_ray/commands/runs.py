"""What is known of a run by its folder alone: where it lies, and the models that it has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from versatune_ray.errors import UserError
from versatune_ray.runs.storage import bring, pull
from versatune_ray.runtime.models import ADAPTER, adapter_base
from versatune_ray.settings import Config
from versatune_ray.settings.loading import saved_config
from versatune_ray.settings.location import is_mirrored, mirrored, root, shown, storage_errors


class Tuned(NamedTuple):
    """A run that has a tuned model.

    model: its folder. base: a folder, of a mirror perhaps, or a Hugging Face id. adapter: ``model``
    holds an adapter alone.
    """

    run: Path
    model: Path
    base: str
    adapter: bool
    config: Config


def folder_of(run: str) -> Path:
    """The folder of a run; of a URI, this machine's copy of it; of a name, the one in ``runs/``.

    Raises:
        UserError: the storage cannot be read.
    """
    if "://" not in run:
        folder, by_name = Path(run).expanduser().absolute(), Path("runs", run).absolute()
        return by_name if by_name.is_dir() and not folder.is_dir() else folder
    storage, _, name = run.rstrip("/").rpartition("/")
    folder = root(storage) / name
    with storage_errors(storage):
        pull(folder, without="checkpoints")
    return folder


def tuned_of(run: str) -> Tuned:
    """The tuned model of a run.

    Raises:
        UserError: it has none.
    """
    folder = folder_of(run)
    model, saved = folder / "finetune" / "model", folder / "config.yaml"
    if "://" in run:  # a folder with a manifest of its own is not pulled with the run
        with storage_errors(run.rstrip("/").rpartition("/")[0]):
            bring(model)
    adapter = (model / ADAPTER).is_file()
    if not saved.is_file() or not (adapter or (model / "config.json").is_file()):
        raise UserError(
            f"{run}: no tuned model ({run}/finetune/model); versatune finetune makes it"
        )
    config, _ = saved_config(saved)
    base = adapter_base(model) or config.model.path
    if base is None:  # a tiny one: its tokenizer's folder
        told = json.loads((folder / "data.json").read_text(encoding="utf-8"))["tokenizer"]
        base = _place(told, folder)
    return Tuned(folder, model, base, adapter, config)


def is_folder(base: str) -> bool:
    """Whether a base model is a folder, which has no name that others know."""
    return is_mirrored(base) or Path(base).expanduser().exists()


def _place(told: str, folder: Path) -> str:
    """Where this machine has, or will have, what a file of a run in ``folder`` tells the place of:
    of the storage's URI its mirror.
    """
    found = mirrored(folder)
    if found is None or not told.startswith(f"{shown(root(found[0]))}/"):
        return told
    return str(root(found[0]) / told.removeprefix(f"{shown(root(found[0]))}/"))
