"""Build the report of a run again, put several runs side by side, or follow one that is still
running.

usage: python jobs/report.py RUN                    RUN: the run's folder, or its URI
       python jobs/report.py RUN RUN … [-o FILE]    a page that compares them
       python jobs/report.py RUN --live             served on this machine, always up to date
       python jobs/report.py RUN --follow           again and again until the run is finished
leaves: RUN/report.html, or comparison.html; --live leaves nothing
"""

import argparse
import sys
import time
from pathlib import Path

from versatune_ray.errors import UserError
from versatune_ray.report import build_report, compare_runs
from versatune_ray.report.live import server
from versatune_ray.report.read import read_run
from versatune_ray.runs.storage import pull, push
from versatune_ray.settings.location import root, shown, storage_errors

_EVERY = 10  # seconds


def folder_of(run: str) -> Path:
    """The folder of a run; of a URI, this machine's copy of it."""
    if "://" not in run:
        return Path(run).expanduser().absolute()
    storage, _, name = run.rstrip("/").rpartition("/")
    folder = root(storage) / name
    with storage_errors(storage):
        pull(folder, without="checkpoints")
    return folder


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
    parser.add_argument(
        "--live", action="store_true", help="serve the page here, up to date, until stopped"
    )
    parser.add_argument("--port", type=int, default=8787, help="of --live; 0: any that is free")
    arguments = parser.parse_args()
    try:
        if len(arguments.runs) > 1:
            if arguments.follow or arguments.live:
                option = "--live" if arguments.live else "--follow"
                raise UserError(f"{option}: takes one run; without it several are compared")
            print(
                compare_runs(
                    [folder_of(run) for run in arguments.runs], arguments.output.absolute()
                )
            )
            return
        if arguments.live:
            read_run(folder_of(arguments.runs[0]))
            live = server(lambda: folder_of(arguments.runs[0]), arguments.port)
            print(f"http://127.0.0.1:{live.server_port}/ (Ctrl-C ends it)", flush=True)
            live.serve_forever()
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
