"""The page of a running job on this machine's own address, made again when the run has news."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from versatune_ray.errors import UserError
from versatune_ray.report.page import render
from versatune_ray.report.read import read_run

_KINDS = (".json", ".jsonl", ".parquet", ".yaml")


def server(run: Callable[[], Path], port: int = 0) -> ThreadingHTTPServer:
    """A server of the page of the folder that ``run()`` gives, for this machine alone; an open page
    asks every five seconds whether there is a newer one. ``port`` 0: any that is free.

    Raises:
        UserError: something else has the port.
    """
    made: dict[str, bytes] = {}

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, body: bool) -> None:
            # Another site that points its own name here must not read the page.
            host = (self.headers.get("Host") or "").partition(":")[0]
            if self.path != "/" or host not in ("127.0.0.1", "localhost"):
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            folder = run()
            tag = f'"{state(folder)}"'
            page = made.get(tag) if body else None
            if body and page is None:
                page = render(read_run(folder)).encode("utf-8", "replace")
                made.clear()
                made[tag] = page
            self.send_response(HTTPStatus.OK)
            self.send_header("ETag", tag)
            self.send_header("Cache-Control", "no-store")
            self.send_header("Content-Type", "text/html; charset=utf-8")
            if page is not None:
                self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            if page is not None:
                self.wfile.write(page)

        def log_message(self, *_: object) -> None:
            """Say nothing of each request."""

    try:
        return ThreadingHTTPServer(("127.0.0.1", port), Page)
    except OSError as error:
        raise UserError(f"--port {port}: {error.strerror}; another, or 0 for any") from None


def state(folder: Path) -> str:
    """A text that changes when a file of the run does."""
    files = [one for one in folder.rglob("*.*") if one.suffix in _KINDS]
    shown = [one.stat() for one in files if "checkpoints" not in one.parts and one.is_file()]
    return f"{len(shown)}-{max((one.st_mtime_ns for one in shown), default=0)}"
