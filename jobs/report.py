"""Build the report of a run again, put several runs side by side, or follow one that is still
running.

usage: python jobs/report.py RUN                    RUN: the run's folder, or its URI
       python jobs/report.py RUN RUN … [-o FILE]    a page that compares them
       python jobs/report.py RUN --follow           again and again until the run is finished
leaves: RUN/report.html, or comparison.html
"""

import argparse
import sys
import time
from pathlib import Path

from versatune_ray.commands.runs import folder_of
from versatune_ray.errors import UserError
from versatune_ray.report import build_report, compare_runs
from versatune_ray.report.run_files import read_run
from versatune_ray.runs.storage import push
from versatune_ray.settings.location import shown

_EVERY = 10  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="folder of a run, or its URI: {storage}/{run}"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("comparison.html"),
        help="the page that compares several runs",
    )
    parser.add_argument(
        "--follow", action="store_true", help="build the page again while the run goes on"
    )
    arguments = parser.parse_args()
    try:
        if len(arguments.runs) > 1:
            if arguments.follow:
                raise UserError("--follow: takes one run; without it several are compared")
            print(
                compare_runs(
                    [folder_of(run) for run in arguments.runs], arguments.output.absolute()
                )
            )
            return
        while True:
            folder = folder_of(arguments.runs[0])
            page = build_report(folder, refresh=_EVERY if arguments.follow else None)
            push(page)
            if not arguments.follow or read_run(folder).finished:
                print(shown(page))
                return
            print(f"[report] {shown(page)}: not finished yet; again in {_EVERY} s", flush=True)
            time.sleep(_EVERY)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
