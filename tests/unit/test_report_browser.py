"""The page in a real browser: it draws without an error, answers to the reader, and never obeys
what it shows.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_report import HOSTILE, fabricate_run

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

Session = Callable[..., Any]


def visit(page: Path, steps: Callable[[Session], Any], width: int = 1200) -> tuple[Any, list[str]]:
    """Open ``page`` and do ``steps(evaluate)``, where ``await evaluate(script)`` gives a value;
    returns theirs, and all errors told.
    """

    async def go() -> tuple[Any, list[str]]:
        errors: list[str] = []
        with tempfile.TemporaryDirectory(
            prefix="versatune-browser-", ignore_cleanup_errors=True
        ) as profile:
            command = [
                str(BROWSER),
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
                "--disable-background-networking",
            ]
            command += [f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"]
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
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
                    numbers = itertools.count(1)

                    async def call(method: str, **parameters: Any) -> Any:
                        number = next(numbers)
                        await socket.send(
                            json.dumps({"id": number, "method": method, "params": parameters})
                        )
                        while True:
                            told = json.loads(await socket.recv())
                            if told.get("method") in (
                                "Runtime.exceptionThrown",
                                "Log.entryAdded",
                                "Page.javascriptDialogOpening",
                            ):
                                errors.append(json.dumps(told["params"]))
                            if told.get("id") == number:
                                return told.get("result", told)

                    async def evaluate(script: str) -> Any:
                        found = await call(
                            "Runtime.evaluate",
                            expression=script,
                            returnByValue=True,
                            awaitPromise=True,
                        )
                        assert "exceptionDetails" not in found, found
                        return found["result"].get("value")

                    for domain in ("Runtime", "Log", "Page"):
                        await call(f"{domain}.enable")
                    await call(
                        "Emulation.setDeviceMetricsOverride",
                        width=width,
                        height=900,
                        deviceScaleFactor=1,
                        mobile=width < 600,
                    )
                    await call("Page.navigate", url=page.as_uri())
                    while (
                        await evaluate("document.readyState") != "complete"
                        or await evaluate("location.protocol") != "file:"
                    ):
                        await asyncio.sleep(0.05)
                    return await steps(evaluate), errors
            finally:
                process.terminate()
                process.wait(30)

    return asyncio.run(go())


# Bring every chart near the screen, one after another; resolves to how many were drawn, and how
# many there are.
SCROLL = """(async () => {
  document.querySelectorAll("details").forEach((one) => { one.open = true; });
  const boxes = [...document.querySelectorAll(".chart")];
  const end = Date.now() + 60000;
  for (const box of boxes) {
    box.scrollIntoView();
    while (!box.querySelector(".main-svg") && Date.now() < end) 
      await new Promise((done) => setTimeout(done, 30));
  }
  return [boxes.filter((box) => box.querySelector(".main-svg")).length, boxes.length];
})()"""


@pytest.mark.parametrize("width", [1200, 390])
def test_every_chart_is_drawn_and_a_reader_can_switch_and_toggle(
    tmp_path: Path, width: int
) -> None:
    page = build_report(fabricate_run(tmp_path / "run", guard=True))

    stacked = "one.stackgroup && one.visible !== false"

    async def steps(evaluate: Session) -> dict[str, Any]:
        drawn = await evaluate(SCROLL)
        found = {
            "drawn": drawn,
            "wide": await evaluate("document.documentElement.scrollWidth <= window.innerWidth"),
            "pressed": await evaluate(
                """(() => {
                const at = document;
                const button = at.querySelector('button[data-figure="shares"][data-view="1"]');
                button.click();
                return button.getAttribute("aria-pressed"); })()"""
            ),
            "stacked": await evaluate(
                f"""document.querySelector('.chart[data-figure="shares"]')
                .data.filter((one) => {stacked}).length"""
            ),
        }
        # A click on a legend entry hides a domain; it stays hidden when the view changes.
        await evaluate(
            """(async () => { const box = document.querySelector('.chart[data-figure="losses"]');
            await Plotly.restyle(box, { visible: "legendonly" }, [0]); })()"""
        )
        found["hidden"] = await evaluate(
            """document.querySelector('.chart[data-figure="losses"]').data[0].visible"""
        )
        return found

    found, errors = visit(page, steps, width)
    assert errors == []
    assert found["drawn"][0] == found["drawn"][1] >= 6
    assert found["wide"], "the page is wider than the screen"
    assert found["pressed"] == "true" and found["stacked"] == 6 and found["hidden"] == "legendonly"


def test_numbers_come_down_as_csv(tmp_path: Path) -> None:
    page = build_report(fabricate_run(tmp_path / "run", domains=("law", "=1+1", "code")))

    async def steps(evaluate: Session) -> Any:
        catch = """window.saved = [];
        URL.createObjectURL = (blob) => { window.saved.push(blob); return "#"; };"""
        await evaluate(catch)
        await evaluate(
            """document.querySelector("#outcome .csv").click();
            document.querySelector("#figure-shares figcaption .csv").click()
            """
        )
        buttons = await evaluate(
            """document.querySelectorAll(".csv").length === document.querySelectorAll(".scroll >
            table, .chart").length
            """
        )
        return buttons, await evaluate("Promise.all(window.saved.map((blob) => blob.text()))")

    (buttons, (table, chart)), errors = visit(page, steps)
    assert errors == [] and buttons
    head, *rows = table.lstrip("\ufeff").splitlines()
    assert head.startswith(
        "Domain,Held-out loss (nats/token): before,Held-out loss (nats/token): after"
    )
    assert [row.split(",")[0] for row in rows] == ["law", "'=1+1", "code", "Mean over domains"]
    lines = [
        json.loads(line)
        for line in (tmp_path / "run" / "finetune" / "adjustments.jsonl").read_text().splitlines()
    ]
    head, *rows = chart.lstrip("\ufeff").splitlines()
    assert head == "series,kind,x,y,value"
    requested = [row.split(",") for row in rows if row.startswith("law,requested")]
    assert [float(row[3]) for row in requested] == pytest.approx(
        [line["share"]["law"] for line in lines], abs=1e-5
    )


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    hostile = (
        HOSTILE
        + '<svg onload="window.hurt = 1"><details ontoggle="window.hurt = 1" open>'
        + "javascript:window.hurt=1"
    )
    folder = fabricate_run(
        tmp_path / "run", domains=(HOSTILE[:40], "<b>bold</b>", "code"), text=hostile
    )
    page = build_report(folder)
    both = compare_runs([folder, folder], tmp_path / "both.html")

    async def steps(evaluate: Session) -> Any:
        drawn = await evaluate(SCROLL)
        return drawn, await evaluate(
            "[window.hurt, document.querySelectorAll('main img, main b, main a[href^=http], main "
            "script').length]"
        )

    for one in (page, both):
        ((drawn, there), (hurt, tags)), errors = visit(one, steps)
        assert errors == [] and hurt is None and tags == 0 and drawn == there > 0


def test_a_long_run_opens_at_once(tmp_path: Path) -> None:
    page = build_report(
        fabricate_run(tmp_path / "long", tuple(f"domain {i}" for i in range(50)), adjustments=1000)
    )

    async def steps(evaluate: Session) -> list[float]:
        painted = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
        ready = "performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"
        return [await evaluate(painted), await evaluate(ready)]

    # The goal is one second. These are ten times that, because a shared machine may be busy: they
    # fail on a page that grew out of hand.
    (painted, ready), errors = visit(page, steps)
    print(
        f"seen after {painted:.0f} ms, ready after {ready:.0f} ms, {page.stat().st_size / 1e6:.1f} "
        f"MB"
    )
    assert errors == [] and painted < 10_000 and ready < 10_000
