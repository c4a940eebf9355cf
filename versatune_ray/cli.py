"""The command line that all jobs share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from versatune_ray.cluster import connect
from versatune_ray.config import describe, dump, load
from versatune_ray.errors import UserError
from versatune_ray.microworld.world import DOMAINS
from versatune_ray.pipeline import Run
from versatune_ray.progress import Display
from versatune_ray.run_folder import RunFolder
from versatune_ray.training import plan

QUICKSTART = Path(__file__).resolve().parents[1] / "jobs" / "configs" / "quickstart.yaml"


def main(job: Callable[[Run], Path], description: str) -> NoReturn:
    """Read the configuration, join or start Ray, do ``job(run)``, print the path of what it made.

    Exit status: 0 done, 1 failed, 2 wrong input (one line says what and how to mend it), 130 interrupted.
    """
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="keys (type [unit] = default):\n\n" + describe(),
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted keys of the configuration, such as training.epochs=2")
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help="YAML file; may be repeated, later ones win; none: jobs/configs/quickstart.yaml",
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument("--debug", action="store_true", help="full tracebacks and all logs of the workers")
    arguments = parser.parse_intermixed_args()
    try:
        config = load(arguments.config or [QUICKSTART], arguments.overrides)
        if arguments.print_config:
            print(dump(config), end="")
            sys.exit(0)
        names = list(config.domains or config.base.corpora or DOMAINS)
        plan.check(config, names)  # a wrong target, start or floor is told before anything is spent
        with RunFolder(config) as folder:
            connect(verbose=arguments.debug)
            with Display():
                made = job(Run(folder))
        print(f"\n{made}", flush=True)
        sys.exit(0)
    except UserError as error:
        _fail(error, arguments.debug, 2)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        _fail(error, arguments.debug, 1)


def _fail(error: BaseException, debug: bool, status: int) -> NoReturn:
    """One readable line; Ray wraps what went wrong in a worker, so the innermost cause is what is shown."""
    if debug:
        import traceback

        traceback.print_exception(error)
    cause: BaseException = error
    while True:
        inner = getattr(cause, "cause", None) or cause.__cause__ or next(iter(getattr(cause, "worker_failures", {}).values()), None)
        if not isinstance(inner, BaseException) or inner is cause:
            break
        cause = inner
    if isinstance(cause, UserError):
        status = 2
    text = str(cause).strip()
    lines = [line for line in text.splitlines() if line.strip() and "For further information" not in line]
    line = lines[-1].strip() if lines else type(cause).__name__
    kind = "" if isinstance(cause, UserError) else f"{type(cause).__name__}: "
    hint = "" if debug or isinstance(cause, UserError) else "  (--debug shows the whole traceback)"
    print(f"error: {kind if not line.startswith(kind) else ''}{line}{hint}", file=sys.stderr, flush=True)
    sys.exit(status)
