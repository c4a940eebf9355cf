"""``versatune init``: a first configuration from a folder of files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from versatune_ray.cli import Parser
from versatune_ray.errors import UserError
from versatune_ray.pipeline.starter import starter


def command(what: str, arguments: Sequence[str]) -> None:
    """Write it, and say what was seen and what to type next.

    Raises:
        UserError: as ``starter``; there is no model, or the file is there.
    """
    parser = Parser(prog="versatune init", description=what)
    parser.add_argument("folder", type=Path, help="of files, or of a folder for each domain")
    parser.add_argument(
        "--model", help="a Hugging Face id or a model's folder; asked for if missing"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("versatune.yaml"))
    given = parser.parse_args(arguments)
    if given.output.exists():
        raise UserError(f"{given.output}: is there already; name another file with -o")
    model = given.model
    if model is None and sys.stdin.isatty():
        with suppress(EOFError):
            model = input("model (a Hugging Face id or a folder): ").strip()
    if not model:
        raise UserError("--model: none given; a folder, or an id such as Qwen/Qwen2.5-1.5B")
    text, looked = starter(given.folder, model)
    for line in looked:
        print(line)
    try:
        given.output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{given.output}: {error.strerror}; name another file with -o") from None
    print(
        f"\n{given.output}\n\nnext:"
        f"\n  versatune preview --config {given.output}            what would train"
        f"\n  versatune finetune --config {given.output} --plan    steps, memory and time"
        f"\n  versatune pipeline --config {given.output}           train, measure, report"
    )
