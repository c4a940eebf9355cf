"""The page obeys nothing that is written in a run's files, loads nothing and names no folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

from report_runs import HOSTILE, assert_harmless, body_of, fabricate_run

from versatune_ray.report import build_report


def test_no_folder_of_this_machine_stands_on_the_page(tmp_path: Path) -> None:
    folder = fabricate_run(tmp_path / "mine", ("law", "code"), text="see /usr/share/dict/words")
    config = json.loads((folder / "config.yaml").read_text())
    config["model"] = {"path": "/home/me/models/tiny"}
    (folder / "config.yaml").write_text(json.dumps(config))
    page = build_report(folder).read_text()
    assert str(tmp_path) not in page and "/home/" not in page and "…/models/tiny" in page
    assert "see /usr/share/dict/words" in page  # what a model wrote is left alone


def test_hostile_text_is_shown_and_never_obeyed(tmp_path: Path) -> None:
    folder = fabricate_run(
        tmp_path / "run", (HOSTILE, "b<i>", "\ufffdc"), adjustments=3, text=HOSTILE
    )
    for name in (
        "config.yaml",
        "data.json",
        "finetune/adjustments.jsonl",
        "evaluation/results.json",
    ):
        text = (folder / name).read_text()
        (folder / name).write_text(
            text.replace("\\ufffdc", "\\ud800c").replace("the the", "\\ud800 the")
        )
    results = json.loads((folder / "evaluation/results.json").read_text())
    for answer in results["answers"]:
        answer |= {"question": HOSTILE, "expected": HOSTILE, "base": HOSTILE}
    (folder / "evaluation/results.json").write_text(json.dumps(results))
    timings = {"steps": [{"name": HOSTILE, "seconds": 1, "cached": False}], "finished": HOSTILE}
    (folder / "timings.json").write_text(json.dumps(timings))
    page = build_report(folder)
    assert_harmless(page)
    body = body_of(page)
    assert "{{ 7*7 }}" in body and "&lt;script&gt;alert(1)&lt;/script&gt;" in body
    assert "\ufffd" in body


def test_nothing_is_loaded_from_anywhere(tmp_path: Path) -> None:
    body = build_report(fabricate_run(tmp_path / "run", guard=True)).read_text(encoding="utf-8")
    targets = re.findall(r"(?:src|href|action)\s*=\s*[\"']?([^\"'>\s]+)", body)
    assert all(target.startswith("#") for target in targets)
    assert "https://" not in body and "@import" not in body and "url(" not in body
    assert "<link" not in body and not re.findall(r"<[^>]*\son\w+\s*=", body)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', body)
    assert (
        policy and "default-src 'none'" in policy.group(1) and "unsafe-eval" not in policy.group(1)
    )
