"""``versatune push``: model or adapter and a card of it to the Hugging Face hub."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from versatune_ray.cli import Parser
from versatune_ray.commands.card import card
from versatune_ray.commands.runs import Tuned, is_folder, tuned_of
from versatune_ray.errors import UserError
from versatune_ray.runs.cache import write_json
from versatune_ray.runtime.models import ADAPTER

_CONVERTER = "convert_hf_to_gguf.py"
_REPOSITORY = re.compile(r"[\w][\w.-]*/[\w][\w.-]*", re.ASCII)


def command(what: str, arguments: Sequence[str]) -> None:
    """Write the folder ``hub`` of the run, and send it.

    Raises:
        UserError: the run has no tuned model, an adapter's base is a folder of this machine, or the
            hub refuses.
    """
    parser = Parser(
        prog="versatune push",
        description=what,
        epilog="The key is the hub's own: `hf auth login`, or HF_TOKEN.",
    )
    parser.add_argument("run", help="folder of a run, such as runs/mine, or its URI")
    parser.add_argument("repository", metavar="REPO_ID", help="OWNER/NAME on the hub")
    parser.add_argument("--dry-run", action="store_true", help="write the folder, send nothing")
    parser.add_argument("--public", action="store_true", help="for everyone; else it is private")
    parser.add_argument("--base", metavar="ID", help="the base model's name on the hub")
    parser.add_argument("--gguf", action="store_true", help="a GGUF too, by llama.cpp's converter")
    parser.add_argument("--llama-cpp", type=Path, metavar="FOLDER", help=f"that has {_CONVERTER}")
    given = parser.parse_args(arguments)
    if not _REPOSITORY.fullmatch(given.repository):
        raise UserError(f"{given.repository}: is no repository; write OWNER/NAME")
    tuned = tuned_of(given.run)
    base = given.base or tuned.base
    if tuned.adapter and is_folder(base):
        raise UserError(f"{base}: the adapter's base is a folder of this machine; give --base ID")
    folder = gathered(tuned, given.repository, base)
    if given.gguf:
        print(gguf(tuned, folder, given.repository.partition("/")[2], given.llama_cpp))
    for file in sorted(folder.iterdir()):
        print(f"  {file.name:<40} {file.stat().st_size / 1e6:10,.1f} MB")
    kind = "public" if given.public else "private"
    if given.dry_run:
        print(f"\nwould send this to the {kind} {given.repository}; nothing is sent\n{folder}")
    else:
        print(f"\n{send(folder, given.repository, given.public)}")


def gathered(tuned: Tuned, repository: str, base: str) -> Path:
    """What is sent: the model's files, and the card in place of any other; made anew."""
    folder = tuned.run / "hub"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file in tuned.model.iterdir():
        if not file.is_file() or file.suffix == ".md" or file.name.startswith("."):
            continue
        if file.suffix == ".safetensors":
            _link(file, folder / file.name)
        else:
            shutil.copyfile(file, folder / file.name)
    if tuned.adapter:
        content = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
        write_json(folder / ADAPTER, content | {"base_model_name_or_path": base})
    (folder / "README.md").write_text(card(tuned, repository, base), encoding="utf-8")
    return folder


def send(folder: Path, repository: str, public: bool) -> str:
    """Returns the address of what was sent.

    Raises:
        UserError: the hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi()
    try:
        api.create_repo(repository, private=not public, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="versatune push")
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{repository}: the hub did not take it: {reason}") from error
    return f"https://huggingface.co/{repository}"


def gguf(tuned: Tuned, folder: Path, name: str, llama_cpp: Path | None) -> str:
    """Make ``NAME.gguf`` in ``folder``; returns a line that says so, or why there is none.

    Raises:
        UserError: the converter fails.
    """
    found = shutil.which(_CONVERTER) if llama_cpp is None else str(llama_cpp / _CONVERTER)
    if found is None or not Path(found).is_file():
        return f"no GGUF: {_CONVERTER} is not found; name llama.cpp's folder with --llama-cpp"
    from versatune_ray.training.adapters import whole_model

    config = tuned.config
    model = whole_model(str(tuned.model), config.cache_folder, config.model.trust_remote_code)
    file = folder / f"{name}.gguf"
    line = [sys.executable, found, model, "--outfile", str(file)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode or not file.is_file():
        said = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
        raise UserError(f"{found}: failed: {said[-1]}")
    return f"{file.name} made by {found}"


def _link(file: Path, to: Path) -> None:
    """No second copy of gigabytes where the disk allows it."""
    try:
        os.link(file, to)
    except OSError:
        shutil.copyfile(file, to)
