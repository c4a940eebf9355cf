"""``versatune``: one command for all jobs, and for what stands around them. A job is the same file
that ``ray job submit -- python jobs/NAME.py`` takes.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from importlib import import_module
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
    "quickstart": "the whole method on a small made-up world, and balanced beside it",
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
}
_USE = {
    "chat": "talk to the tuned model, and to the base model beside it",
    "serve": "the tuned model behind an OpenAI-compatible API, by vLLM",
    "push": "model, adapter and a card of them to the Hugging Face hub; a GGUF by llama.cpp",
    "completion": "a script by which bash, zsh or fish completes commands, options and keys",
}
_SEARCH = {
    "sweep": "a search over ε, δ, σ or any other key",
    "study": "methods × seeds, with intervals and paired differences",
    "cofitune": "which layers and modules should move for the targets",
    "replay": "recorded losses through other settings, in a second",
    "soup": "the mean of models that were tuned from one base",
    "make_base": "a tiny base model with a known mixture, and a tiny judge",
}
COMMANDS = _BEGIN | _TRAIN | _USE | _SEARCH
# what stands around the jobs: a module beside this one
_OWN = ("init", "chat", "serve", "push", "completion")


def command() -> NoReturn:
    """Entry point of ``versatune``. Exit statuses are those of the jobs."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        sys.exit(0)
    name, rest = arguments[0], arguments[1:]
    with exits_on_error("--debug" in rest):
        if name in _OWN:
            import_module(f"{__name__}.{name}").command(COMMANDS[name], rest)
        else:
            _job(name, rest)
    sys.exit(0)


def _overview() -> str:
    lines = ["usage: versatune COMMAND [--config FILE] [key=value …]"]
    for title, group in (
        ("begin", _BEGIN),
        ("train", _TRAIN),
        ("use", _USE),
        ("compare", _SEARCH),
    ):
        lines += ["", f"{title}:", *(f"  {name:<11} {what}" for name, what in group.items())]
    more = "versatune COMMAND --help says more, --keys what a configuration may say"
    return "\n".join([*lines, "", more])


def _job(name: str, arguments: Sequence[str]) -> None:
    if name not in COMMANDS:
        raise UserError(f"versatune {name}: no such command; {nearest(name, [*COMMANDS])}")
    asks = {"-h", "--help", "--keys"} & set(arguments)
    given = any(one == "--config" or one.startswith("--config=") for one in arguments)
    if name not in _WITHOUT_CONFIG and not asks and not given:
        if arguments and Path(arguments[0]).suffix in (".yaml", ".yml"):
            raise UserError(
                f"{arguments[0]}: a configuration file is given as --config {arguments[0]}"
            )
        raise UserError(f"versatune {name}: no configuration; give --config my.yaml ({_TRY})")
    file = JOBS / f"{'pipeline' if name == 'quickstart' and given else name}.py"
    sys.argv = [f"versatune {name}", *arguments]
    runpy.run_path(str(file), run_name="__main__")
