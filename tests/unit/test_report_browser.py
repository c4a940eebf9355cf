"""The page in a real browser: on a desk, a phone, paper, in the dark and without JavaScript; and it
never obeys what it shows.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from report_runs import HOSTILE, fabricate_run

from versatune_ray.report import build_report, compare_runs

BROWSER = next(
    (
        found
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (found := shutil.which(name))
    ),
    None,
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
websockets = pytest.importorskip("websockets")


class Browser:
    """One headless Chromium; ``errors`` are all that its pages told."""

    def __init__(self, socket: Any):
        self.socket, self.numbers, self.errors = socket, itertools.count(1), list[str]()

    async def call(self, method: str, **parameters: Any) -> Any:
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        await self.socket.send(json.dumps(message))
        bad = ("Runtime.exceptionThrown", "Log.entryAdded", "Page.javascriptDialogOpening")
        while True:
            told = json.loads(await self.socket.recv())
            if told.get("method") in bad:
                self.errors.append(json.dumps(told["params"]))
            if told.get("id") == number:
                return told.get("result", told)

    async def run(self, script: str) -> Any:
        """The value of a script on the page."""
        found = await self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def open(
        self, page: Path, width: int = 1200, media: str = "", scheme: str = "light", js: bool = True
    ) -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        await self.call("Emulation.setDeviceMetricsOverride", **size)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        await self.call("Emulation.setEmulatedMedia", media=media, features=[feature])
        await self.call("Emulation.setScriptExecutionDisabled", value=not js)
        await self.call("Page.navigate", url="about:blank")
        await self.call("Page.navigate", url=page.as_uri())
        ready = f"document.readyState === 'complete' && location.href === {page.as_uri()!r}"
        while not await self.run(ready):
            await asyncio.sleep(0.02)

    async def drag(self, *places: tuple[float, float]) -> None:
        kinds = ["mousePressed", *["mouseMoved"] * (len(places) - 2), "mouseReleased"]
        for kind, (x, y) in zip(kinds, places, strict=True):
            about = {"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1, "buttons": 1}
            await self.call("Input.dispatchMouseEvent", **about)


def browse(steps: Callable[[Browser], Awaitable[Any]]) -> Any:
    """What ``steps`` give; no page may have told an error."""

    async def go() -> Any:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
            options += ["--disable-background-networking", f"--user-data-dir={profile}"]
            quiet = subprocess.DEVNULL
            command = [str(BROWSER), *options, "--remote-debugging-port=0", "about:blank"]
            process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
            try:
                port = Path(profile) / "DevToolsActivePort"
                deadline = time.monotonic() + 60
                while not port.is_file() or not port.read_text():
                    assert time.monotonic() < deadline, "the browser does not start"
                    await asyncio.sleep(0.1)
                address = f"http://127.0.0.1:{port.read_text().splitlines()[0]}/json"
                tabs = json.load(urllib.request.urlopen(address))
                target = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
                async with websockets.connect(target, max_size=None) as socket:
                    browser = Browser(socket)
                    for domain in ("Runtime", "Log", "Page"):
                        await browser.call(f"{domain}.enable")
                    found = await steps(browser)
                    assert browser.errors == []
                    return found
            finally:
                process.terminate()
                process.wait(30)

    return asyncio.run(go())


FITS = "document.documentElement.scrollWidth <= window.innerWidth"
# how many charts are to be seen, and how many there are
SEEN = """(() => { const all = [...document.querySelectorAll(".view")];
  return [all.filter((one) => one.getBoundingClientRect().height > 50).length, all.length]; })()"""


def test_a_reader_hovers_zooms_switches_and_downloads(tmp_path: Path) -> None:
    page = build_report(fabricate_run(tmp_path / "run", ("law", "=1+1", "code"), guard=True))

    async def steps(browser: Browser) -> dict[str, Any]:
        await browser.open(page)
        found: dict[str, Any] = {}
        near = "document.querySelector('#figure-losses').scrollIntoView({behavior: 'instant'})"
        await browser.run(near)
        while not await browser.run("!!document.querySelector('#figure-losses .tip')"):
            await asyncio.sleep(0.02)
        place = await browser.run(
            """(() => { const r = document.querySelector("#figure-losses .field")
            .getBoundingClientRect(); return [r.x, r.y, r.width, r.height]; })()"""
        )
        x, y, wide, high = place
        await browser.call(
            "Input.dispatchMouseEvent", type="mouseMoved", x=x + wide / 2, y=y + high / 2
        )
        tip = "document.querySelector('#figure-losses .told .tip').innerText"
        found["tip"] = await browser.run(tip)
        marks = """[...document.querySelectorAll("#figure-losses .view:nth-of-type(1) .xs span")]
            .map((one) => Number(one.textContent))"""
        found["before"] = await browser.run(marks)
        half = y + high / 2
        await browser.drag((x + wide / 4, half), (x + wide / 3, half), (x + wide / 2, half))
        found["zoomed"] = await browser.run(marks)
        await browser.run("document.querySelector('#figure-losses .back').click()")
        found["after"] = await browser.run(marks)
        found["hidden"] = await browser.run(
            """(() => { const at = document.querySelector("#figure-losses");
            at.querySelector('button[data-g="0"]').click();
            const lines = [...at.querySelectorAll('path[data-g="0"]')];
            return [lines.length, lines.filter((one) => getComputedStyle(one).display === "none")
            .length]; })()"""
        )
        found["views"] = await browser.run(
            """(() => { const at = document.querySelector("#figure-shares");
            at.querySelectorAll("label")[1].click();
            return [...at.querySelectorAll(".view")].map((one) => one.offsetHeight > 0); })()"""
        )
        await browser.run(
            """window.saved = []; URL.createObjectURL = (blob) => (window.saved.push(blob), "#");
            document.querySelector("#outcome .csv").click()"""
        )
        found["csv"] = await browser.run("window.saved[0].text()")
        paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
        found["painted"] = await browser.run(paint)
        return found

    found = browse(steps)
    # The goal is 200 ms; a shared machine may be busy.
    assert found["painted"] < 5_000
    step, *told = found["tip"].splitlines()
    assert step == "150" and [one.split(" ")[0] for one in told] != [] and len(told) == 3
    assert found["before"] == found["after"] == [0, 100, 200, 300]
    assert found["zoomed"] and min(found["zoomed"]) >= 75 and max(found["zoomed"]) <= 150
    assert found["hidden"][0] == found["hidden"][1] > 0
    assert found["views"] == [False, True, False, False]
    head, *rows = found["csv"].lstrip("\ufeff").splitlines()
    assert head.startswith("Domain,Held-out loss (nats/token): before,Held-out loss (nats/token)")
    assert [row.split(",")[0] for row in rows] == ["law", "'=1+1", "code", "Mean over domains"]


def test_a_phone_the_dark_paper_and_no_javascript_show_everything(tmp_path: Path) -> None:
    names = [f"{kind} {what}" for kind in ("civil", "applied") for what in SUBJECTS]
    page = build_report(fabricate_run(tmp_path / "run", tuple(names), guard=True))

    async def steps(browser: Browser) -> dict[str, Any]:
        found: dict[str, Any] = {}
        await browser.open(page, width=390)
        found["fits"] = await browser.run(FITS)
        found["scrolls"] = await browser.run(
            """[...document.querySelectorAll("#outcome .scroll")].map((one) =>
            [one.scrollWidth > one.clientWidth,
            getComputedStyle(one).backgroundImage !== "none"])"""
        )
        found["stacked"] = await browser.run(
            """(() => { const [one, two] = document.querySelectorAll(".answer dl > div");
            return two.getBoundingClientRect().top >= one.getBoundingClientRect().bottom; })()"""
        )
        found["closed"] = await browser.run(
            "document.querySelectorAll('#generations details[open]').length"
        )
        await browser.open(page, scheme="dark")
        found["dark"] = await browser.run(
            """[getComputedStyle(document.body).backgroundColor, new Set([...document
            .querySelectorAll("#figure-shares .view:nth-of-type(1) path.line")].map((one) =>
            getComputedStyle(one).stroke)).size]"""
        )
        await browser.open(page, media="print", scheme="dark")
        found["paper"] = await browser.run("getComputedStyle(document.body).backgroundColor")
        found["printed"] = await browser.run(SEEN)
        await browser.open(page, js=False)
        found["plain"] = await browser.run(SEEN)
        found["lines"] = await browser.run(
            """[...document.querySelectorAll("#figure-shares .view:nth-of-type(1) path.line")]
            .filter((one) => one.getBoundingClientRect().width > 100).length"""
        )
        return found

    found = browse(steps)
    assert found["fits"], "the page is wider than the screen"
    assert found["scrolls"] == [[True, True]] and found["stacked"] and found["closed"] == 0
    assert found["dark"] == ["rgb(19, 22, 27)", 12]
    assert found["paper"] == "rgb(255, 255, 255)" and found["printed"][0] == found["printed"][1]
    # before and after, detected, shares, losses, degrees, guard: the first view of each
    assert found["plain"][0] == 6 and found["lines"] == 12


SUBJECTS = ("law", "medicine", "finance", "science", "code", "art")


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    hostile = (
        HOSTILE
        + '<svg onload="window.hurt = 1"><details ontoggle="window.hurt = 1" open>'
        + "javascript:window.hurt=1"
    )
    folder = fabricate_run(
        tmp_path / "run", (HOSTILE[:40], "<b>bold</b>", "code"), text=hostile, guard=True
    )
    pages = [build_report(folder), compare_runs([folder, folder], tmp_path / "both.html")]

    async def steps(browser: Browser) -> None:
        for page in pages:
            await browser.open(page)
            await browser.run("document.querySelectorAll('details').forEach((d) => (d.open = 1))")
            found = await browser.run(
                "[window.hurt, document.querySelectorAll('main img, main a[href^=http], "
                "main script, bdi b').length]"
            )
            assert found == [None, 0]

    browse(steps)
