"""Fine-tune without Ray: in this process alone, or as one of torchrun's.

usage: python -m versatune_ray.training [--config FILE] [key=value …]
       torchrun --nproc-per-node 2 -m versatune_ray.training [--config FILE] [key=value …]

The number of workers is the number of processes, whatever training.workers says; data, shares and
numbers are those of jobs/finetune.py. Detected shares and reference losses are those that this
run's folder holds (jobs/detect.py, jobs/reference.py) or the configuration names.
"""

from __future__ import annotations

import argparse
import atexit
import os
import sys

from versatune_ray.errors import UserError, is_disk_full, one_line
from versatune_ray.runs.folder import say
from versatune_ray.settings import idle, semantics
from versatune_ray.settings.loading import load, no_option


def main() -> int:
    from versatune_ray.training.local import finetune_alone
    from versatune_ray.training.step import Unrecoverable
    from versatune_ray.training.together import UserErrorOfAll

    parser = argparse.ArgumentParser(
        prog="python -m versatune_ray.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="dotted keys of the configuration, such as training.epochs=2",
    )
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help="YAML file; may be repeated, later ones win",
    )
    arguments, unknown = parser.parse_known_intermixed_args()
    first = os.environ.get("RANK", "0") == "0"
    try:
        if unknown:
            raise UserError(no_option(unknown))
        config = load(arguments.config, arguments.overrides)
        semantics.check_run(config)
        semantics.check(config, semantics.domain_names(config))
        for line in idle.told(config, idle.TUNING) if first else ():
            say("settings", line)
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # each machine reads its own file
            print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        made = finetune_alone(config)
    except KeyboardInterrupt:
        if first:
            print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except (UserError, Unrecoverable) as error:
        # one that this rank alone has met nobody else can tell
        if first or not isinstance(error, UserErrorOfAll | Unrecoverable):
            print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except Exception as error:
        if not is_disk_full(error):
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    if first:
        print(f"\n{made}")
    return 0


def _silent_from_here() -> None:
    """Where libraries made with nanobind tell their own leaks at exit, pages of them."""
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


if __name__ == "__main__":
    atexit.register(_silent_from_here)
    sys.exit(main())
