"""The command line that all jobs share."""

from __future__ import annotations

import argparse
import atexit
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

from versatune_ray.errors import Incomplete, UserError, is_disk_full, one_line, root_cause
from versatune_ray.pipeline import Run
from versatune_ray.pipeline.checks import TUNING, Use, check_models, check_named, tell_idle
from versatune_ray.pipeline.closing import closing, following
from versatune_ray.runs.folder import RunFolder, check_free
from versatune_ray.runtime.cluster import check_storage, connect
from versatune_ray.runtime.gguf import with_folders
from versatune_ray.runtime.installation import check_installation
from versatune_ray.runtime.progress import Display
from versatune_ray.settings import Config
from versatune_ray.settings.keys import describe, topics
from versatune_ray.settings.loading import dump, load, no_option
from versatune_ray.settings.location import shown

_HERE = Path(__file__).resolve().parent
# beside the package in the repository, within it in a wheel
JOBS = (
    _HERE.parent / "jobs" if (_HERE.parent / "jobs" / "pipeline.py").is_file() else _HERE / "jobs"
)
QUICKSTART = str(JOBS / "configs" / "quickstart.yaml")


class Parser(argparse.ArgumentParser):
    """One line for a mistake, and ``--debug`` on every command."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.add_argument("--debug", action="store_true", help="full tracebacks, all logs")

    def error(self, message: str) -> NoReturn:
        _fail(UserError(f"{self.prog}: {message}; --help says more"), False, 2)


def main(
    name: str,
    job: Callable[[Run], Path],
    description: str,
    plan_of: Callable[[Config], str],
    check: Callable[[Config], None] | None = None,
    needs_ray: bool = True,
    uses: Collection[Use] = TUNING,
) -> NoReturn:
    """Read the configuration, join or start Ray, do ``job(run)``; print what came of it, what one
    would type next, and last the path of what it made.

    ``name`` is the job's. ``plan_of`` is what ``--plan`` prints; ``check`` refuses what this job
    alone cannot do, before anything starts; ``uses`` is what it works on (``check_named``). Exit
    status: 0 done, 1 failed or done in part, 2 wrong input (one line says what and how to mend
    it), 130 interrupted, 143 ended.
    """
    parser = job_parser(description)
    parser.add_argument(
        "--plan", action="store_true", help="print what would be done and what it needs, and stop"
    )
    parser.add_argument("--open", action="store_true", help="show the page when it is done")
    arguments = parse(parser)
    with exits_on_error(arguments.debug):
        config = read_config(arguments)
        check_named(config, uses)
        if not arguments.plan:
            check_free(config)
        if check is not None:
            check(config)
        check_installation()
        config = with_folders(config)
        check_models(config, uses)
        tell_idle(config, uses, name)
        if arguments.plan:
            with writing(config.cache_folder):  # where records of some megabytes are tokenised
                print(plan_of(config))
            sys.exit(0)
        with RunFolder(config) as folder:
            if needs_ray:
                connect(verbose=arguments.debug)
                check_storage(folder.path)
                # Ray's own may end the process before its temporary folder is gone
                signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
            run = Run(folder)
            with Display() if needs_ray else nullcontext():
                made = job(run)
            if arguments.open and made.suffix != ".html":
                run.report()
        print(f"\n{closing(name, folder.path, arguments.config, arguments.overrides)}")
        print(f"\n{shown(made)}", flush=True)
        if arguments.open:
            show((folder.path / "report.html").absolute().as_uri())
    sys.exit(0)


def show(address: str) -> None:
    """Open a page in the browser, where there is one."""
    import webbrowser

    if not webbrowser.open(address):
        print(f"--open: no browser here; the page is {address}", file=sys.stderr)


def preview(description: str) -> NoReturn:
    """Print what would train; exit statuses as ``main``'s."""
    from versatune_ray.domains.preview import preview as look
    from versatune_ray.domains.preview import screen

    parser = job_parser(description)
    parser.add_argument("--records", type=int, default=3, metavar="N", help="examples per domain")
    parser.add_argument(
        "--all", action="store_true", help="read every record, not the first 1,000 of each file"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole account to FILE")
    arguments = parse(parser)
    with exits_on_error(arguments.debug):
        if arguments.records < 0:
            raise UserError(f"--records: {arguments.records} is below 0")
        config = read_config(arguments)
        check_installation()
        found, warnings = look(with_folders(config), arguments.records, everything=arguments.all)
        colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        print(screen(found, warnings, colour=colour))
        files = [f"--config {file}" for file in map(shlex.quote, arguments.config or [QUICKSTART])]
        given = " ".join([*files, *map(shlex.quote, arguments.overrides)])
        print("", *following("preview", "", given), sep="\n", flush=True)
        if arguments.json is not None:
            domains = {name: one.as_json() for name, one in found.items()}
            content = {"domains": domains, "warnings": warnings}
            with writing(arguments.json):
                arguments.json.write_text(
                    json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n",
                    encoding="utf-8",
                )
    sys.exit(0)


def job_parser(description: str) -> Parser:
    """What every job understands."""
    parser = Parser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"keys: --keys lists all, --keys SECTION those of {', '.join(topics())}",
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
        help="YAML file; may be repeated, later ones win; none: jobs/configs/quickstart.yaml",
    )
    parser.add_argument(
        "--keys",
        nargs="?",
        const="",
        metavar="SECTION",
        help="print the keys of a configuration with type, unit, default and meaning, and stop",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved configuration and stop"
    )
    return parser


def parse(parser: Parser) -> argparse.Namespace:
    """The command line; an option that is none ends the process, and says what to type."""
    arguments, unknown = parser.parse_known_intermixed_args()
    if arguments.keys is not None:
        with exits_on_error(arguments.debug):
            print(describe(arguments.keys))
        sys.exit(0)
    if unknown:
        _fail(UserError(no_option(unknown)), arguments.debug, 2)
    return arguments


def read_config(arguments: argparse.Namespace) -> Config:
    """The configuration that the command line names; ``--print-config`` prints it and ends the
    process.

    Raises:
        UserError: as ``load``.
    """
    config = load(arguments.config or [QUICKSTART], arguments.overrides)
    if arguments.print_config:
        print(dump(config), end="")
        sys.exit(0)
    return config


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """What hinders ``target`` from being written becomes one line that names it; of a full disk
    ``exits_on_error`` tells.

    Raises:
        UserError: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        at = Path(str(error.filename or target)).absolute()
        if is_disk_full(error) or not at.is_relative_to(target.absolute().parent):
            raise
        reason = (error.strerror or str(error)).lower()
        which = "" if at == target.absolute() else f" ({at})"
        raise UserError(
            f"{target}: cannot be written: {reason}{which}; name another place"
        ) from None


@contextmanager
def exits_on_error(debug: bool) -> Iterator[None]:
    """Whatever goes wrong becomes one line and an exit status."""
    try:
        yield
    except UserError as error:
        _fail(error, debug, 2)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        _fail(error, debug, 1)


def _fail(error: BaseException, debug: bool, status: int) -> NoReturn:
    """One readable line."""
    if debug:
        import traceback

        traceback.print_exception(error)
    if isinstance(root_cause(error), UserError) or is_disk_full(error):
        status = 2
    hint = (
        ""
        if debug or status == 2 or isinstance(root_cause(error), Incomplete)
        else "  (--debug shows the whole traceback)"
    )
    print(f"error: {one_line(error)}{hint}", file=sys.stderr, flush=True)
    sys.exit(status)


@atexit.register  # early, so that it is done late
def _leave_in_silence() -> None:
    """What libraries say while Python takes them apart, such as what Triton did not free, is no
    news to a person.
    """
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
