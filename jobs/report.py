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

from versatune_ray.cli import Parser, exits_on_error, show, writing
from versatune_ray.commands.runs import folder_of
from versatune_ray.errors import UserError
from versatune_ray.pipeline.closing import closing
from versatune_ray.report import build_report, compare_runs
from versatune_ray.report.live import server
from versatune_ray.report.read import read_run
from versatune_ray.runs.storage import push
from versatune_ray.settings.location import shown

_EVERY = 10  # seconds
_PORT = 8787


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="folder of a run, its URI, or its name in runs/"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="the page that compares several runs; comparison.html",
    )
    parser.add_argument(
        "--follow", action="store_true", help="build the page again while the run goes on"
    )
    parser.add_argument(
        "--live", action="store_true", help="serve the page here, up to date, until stopped"
    )
    parser.add_argument("--port", type=int, help="of --live, 8787; 0: any that is free")
    parser.add_argument("--open", action="store_true", help="show the page in a browser")
    arguments = parser.parse_args()
    with exits_on_error(arguments.debug):
        check(arguments)
        if arguments.live:
            serve(arguments)
            return
        page = compared(arguments) if len(arguments.runs) > 1 else of_one(arguments)
        print(shown(page), flush=True)
        if arguments.open:
            show(page.absolute().as_uri())


def check(arguments: argparse.Namespace) -> None:
    """Refuse options that do nothing together."""
    for name in ("live", "follow"):
        if getattr(arguments, name) and len(arguments.runs) > 1:
            raise UserError(f"--{name}: takes one run; without it several are compared")
    if arguments.live and arguments.follow:
        raise UserError("--follow: writes the page again and again; --live serves it: choose one")
    if arguments.output is not None and len(arguments.runs) == 1:
        raise UserError(
            "-o: names the page that compares several runs; that of one is in its folder"
        )
    if arguments.port is not None and not arguments.live:
        raise UserError("--port: is that of --live; add it")
    if not 0 <= (arguments.port or 0) < 2**16:
        raise UserError(f"--port: {arguments.port} is not within 0 and 65535")


def serve(arguments: argparse.Namespace) -> None:
    read_run(folder_of(arguments.runs[0]))
    port = _PORT if arguments.port is None else arguments.port
    live = server(lambda: folder_of(arguments.runs[0]), port)
    address = f"http://127.0.0.1:{live.server_port}/"
    print(f"{address} (Ctrl-C ends it)", flush=True)
    if arguments.open:
        show(address)
    with suppress(KeyboardInterrupt):
        live.serve_forever()


def compared(arguments: argparse.Namespace) -> Path:
    folders = [folder_of(run) for run in arguments.runs]
    target = (arguments.output or Path("comparison.html")).absolute()
    with writing(target):
        return Path(compare_runs(folders, target))


def of_one(arguments: argparse.Namespace) -> Path:
    while True:
        folder = folder_of(arguments.runs[0])
        with writing(folder / "report.html"):
            page = build_report(folder, refresh=_EVERY if arguments.follow else None)
        push(page)
        if not arguments.follow or read_run(folder).finished:
            print(closing("report", folder, (), ()) + "\n")
            return page
        print(f"[report] {shown(page)}: not finished yet; again in {_EVERY} s", flush=True)
        time.sleep(_EVERY)


if __name__ == "__main__":
    main()
