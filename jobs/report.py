"""Build the report of a run again, put several runs side by side, or follow one that is still
running.

usage: python jobs/report.py RUN                    RUN: the run's folder, or its URI
       python jobs/report.py RUN RUN … [-o FILE]    a page that compares them
       python jobs/report.py RUN --live             served on this machine, always up to date
       python jobs/report.py RUN --follow           again and again until the run is finished
leaves: RUN/report.html, or comparison.html; --live leaves nothing
"""

import argparse
import time
from contextlib import suppress
from pathlib import Path

from versatune_ray.cli import Parser, exits_on_error, show
from versatune_ray.commands.runs import folder_of
from versatune_ray.errors import UserError
from versatune_ray.pipeline.closing import closing
from versatune_ray.report import build_report, compare_runs
from versatune_ray.report.live import server
from versatune_ray.report.read import read_run
from versatune_ray.runs.storage import push
from versatune_ray.settings.location import shown

_EVERY = 10  # seconds


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="folder of a run, its URI, or its name in runs/"
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
    parser.add_argument("--open", action="store_true", help="show the page in a browser")
    arguments = parser.parse_args()
    with exits_on_error(arguments.debug):
        if arguments.live:
            serve(arguments)
            return
        page = compared(arguments) if len(arguments.runs) > 1 else of_one(arguments)
        print(shown(page), flush=True)
        if arguments.open:
            show(page.absolute().as_uri())


def serve(arguments: argparse.Namespace) -> None:
    if len(arguments.runs) > 1:
        raise UserError("--live: takes one run; without it several are compared")
    read_run(folder_of(arguments.runs[0]))
    live = server(lambda: folder_of(arguments.runs[0]), arguments.port)
    address = f"http://127.0.0.1:{live.server_port}/"
    print(f"{address} (Ctrl-C ends it)", flush=True)
    if arguments.open:
        show(address)
    with suppress(KeyboardInterrupt):
        live.serve_forever()


def compared(arguments: argparse.Namespace) -> Path:
    if arguments.follow:
        raise UserError("--follow: takes one run; without it several are compared")
    folders = [folder_of(run) for run in arguments.runs]
    return Path(compare_runs(folders, arguments.output.absolute()))


def of_one(arguments: argparse.Namespace) -> Path:
    while True:
        folder = folder_of(arguments.runs[0])
        page = build_report(folder, refresh=_EVERY if arguments.follow else None)
        push(page)
        if not arguments.follow or read_run(folder).finished:
            print(closing("report", folder, (), ()) + "\n")
            return page
        print(f"[report] {shown(page)}: not finished yet; again in {_EVERY} s", flush=True)
        time.sleep(_EVERY)


if __name__ == "__main__":
    main()
