"""``versatune serve``: the tuned model behind an API, by vLLM."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from versatune_ray.cli import Parser
from versatune_ray.commands.runs import tuned_of
from versatune_ray.errors import UserError
from versatune_ray.runtime.models import ADAPTER


def command(what: str, arguments: Sequence[str]) -> None:
    """Print vLLM's line and become it.

    Raises:
        UserError: the run has no tuned model, or vLLM is not installed.
    """
    parser = Parser(
        prog="versatune serve",
        description=what,
        epilog="Further arguments are vLLM's, as --port 8001; VLLM_API_KEY sets a key.",
    )
    parser.add_argument("run", help="folder of a run, such as runs/mine, or its URI")
    given, more = parser.parse_known_args(arguments)
    tuned = tuned_of(given.run)
    beside = Path(sys.executable).with_name("vllm")
    program = str(beside) if beside.is_file() else shutil.which("vllm")
    if program is None:
        raise UserError("vllm is not installed here: pip install 'versatune-ray[cpu]', or [gpu]")
    host = [] if any(one.startswith("--host") for one in more) else ["--host", "127.0.0.1"]
    served = [str(tuned.model)]
    if tuned.adapter:  # called "tuned" there, beside its base
        rank = json.loads((tuned.model / ADAPTER).read_text(encoding="utf-8"))["r"]
        rank = next(size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= min(rank, 512))
        served = [tuned.base, "--enable-lora", "--max-lora-rank", str(rank)]
        served += ["--lora-modules", f"tuned={tuned.model}", "--tokenizer", str(tuned.model)]
    line = ["vllm", "serve", *served, *host, *more]
    print(shlex.join(line), flush=True)
    os.execv(program, line)
