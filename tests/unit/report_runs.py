"""A run that was never made, with every file, and what to read off its page."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SIX = ("law", "medicine", "finance", "science", "code", "general")


def fabricate_run(
    folder: Path,
    domains: tuple[str, ...] = SIX,
    adjustments: int = 12,
    *,
    guard: bool = False,
    text: str = "The statute of {domain} sets a fine of 40 marks.",
    seed: int = 0,
) -> Path:
    """Write every file of a plausible finished run; numbers move the way a real run's do."""
    rng = np.random.default_rng(seed)
    k = len(domains)

    def put(name: str, tree: Any) -> None:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(tree if isinstance(tree, str) else json.dumps(tree), encoding="utf-8")

    def named(values: Any) -> dict[str, float]:
        return {name: float(value) for name, value in zip(domains, values, strict=True)}

    settings = {
        "run": folder.name,
        "seed": 7,
        "mixture": {
            "policy": "expansion" if guard else "versatune",
            "start": "detected",
            "sigma": 1.0,
        },
    }
    settings |= {
        "model": {"path": None},
        "training": {"epochs": 4, "batch_size": 128, "learning_rate": 2e-5},
        "domains": {},
    }
    put(
        "config.yaml",
        json.dumps(settings | {"versions": {"versatune_ray": "0.1.0", "ray": "2.60.0"}}, indent=1),
    )
    counts = [
        {
            "read": 1040 + i,
            "train": 900,
            "validation": 100,
            "bad": 3,
            "cut": 12,
            "duplicates_removed": 37 + i,
        }
        for i in range(k)
    ]
    put(
        "data.json",
        {
            "domains": dict(zip(domains, counts, strict=True)),
            "tokenizer": "tiny-base",
            "unit": "nats/token",
        },
    )

    share = rng.dirichlet(np.full(k, 4.0))
    known = np.abs(share + rng.normal(0, 0.1 / k, k))
    known /= known.sum()
    put(
        "detection/tiny-base/distribution.json",
        {
            "model": "tiny-base",
            "domains": list(domains),
            "share": share.tolist(),
            "samples": 2000,
            "judge": "tiny-judge",
            "settings": {},
        }
        | {
            "ci95": [[max(p - 0.1 / k, 0), p + 0.1 / k] for p in share],
            "repeats": [(share + rng.normal(0, 0.05 / k, k)).tolist() for _ in range(5)],
        }
        | {
            "discarded": {"total": 31, "reasons": {"empty": 20, "no label": 11}},
            "known": known.tolist(),
        }
        | {"total_variation": float(np.abs(share - known).sum() / 2)},
    )
    rows = 40 * k
    probability = rng.dirichlet(np.full(k, 0.3), rows)
    table = {"id": list(range(rows)), "repeat": [0] * rows, "tokens": [23] * rows}
    table |= {
        "text": [
            text.replace("{domain}", domains[index]) * (1 + row % 9)
            for row, index in enumerate(probability.argmax(1))
        ]
    }
    table |= {name: probability[:, index].tolist() for index, name in enumerate(domains)}
    (folder / "detection/tiny-base/samples").mkdir()
    for part, state in enumerate((None, "empty")):
        pq.write_table(
            pa.table(
                table | {"id": [part * rows + i for i in range(rows)], "discarded": [state] * rows}
            ),
            folder / f"detection/tiny-base/samples/{part}.parquet",
        )

    start, reference = rng.uniform(2.6, 3.6, k), rng.uniform(1.6, 2.1, k)
    curves = [
        [{"epoch": e, "held_out": float(r + (s - r) * 0.4**e), "train": None} for e in range(4)]
        for s, r in zip(start, reference, strict=True)
    ]
    losses = {
        name: {"curve": curve, "loss": curve[-1]["held_out"], "epoch": 3}
        for name, curve in zip(domains, curves, strict=True)
    }
    put(
        "reference/losses.json",
        {"domains": losses, "model": "tiny-base", "unit": "nats/token", "measure": "held_out"},
    )

    lines, loss, walked = [], start.copy(), np.zeros(k)
    for number in range(adjustments + 1):
        previous = loss
        if number:
            loss = (
                reference
                + (start - reference) * np.exp(-3 * number / adjustments)
                + rng.normal(0, 0.02, k)
            )
            walked = walked + share * 4 * k / adjustments
        gamma, phi = (
            np.maximum((loss - reference) / loss, 0),
            np.maximum((loss - previous) / previous, 0),
        )
        asked = share
        if number:
            share = share * (1 + gamma)
            share = share / share.sum()
        line: dict[str, Any] = {
            "step": number * 25,
            "epoch": number / 3,
            "loss": named(loss),
            "learnable_potential": named(gamma),
        }
        line |= {
            "forgetting_degree": named(phi) if number else None,
            "share": named(share),
            "passes": named(walked),
        }
        line |= {
            "share_achieved": named(asked) if number else None,
            "train_loss": named(loss - 0.1) if number else None,
        }
        line |= {
            "token_share_achieved": named(
                asked * np.linspace(0.8, 1.2, k) / (asked * np.linspace(0.8, 1.2, k)).sum()
            )
            if number
            else None
        }
        mean, bound = float(phi.mean()), 0.3 * float(gamma[0]) * rng.uniform()
        line |= {
            "guard": {"open": mean < bound, "forgetting": mean, "bound": bound}
            if guard and number
            else None
        }
        lines.append(json.dumps(line | {"seconds": {"training": 4.0, "measuring": 1.0}}))
    put("finetune/adjustments.jsonl", "\n".join(lines) + "\n")

    results: list[dict[str, Any]] = []
    for index, name in enumerate(domains):
        for model, held_out, right in (
            ("base", start[index], 0.1 + 0.01 * (index % 9)),
            ("tuned", loss[index], 0.5 + 0.03 * (index % 9)),
        ):
            about = {"model": model, "domain": name}
            results.append(
                about
                | {
                    "benchmark": "held_out",
                    "metric": "loss",
                    "unit": "nats/token",
                    "value": held_out,
                    "standard_error": None,
                    "n": 100,
                }
            )
            error = (right * (1 - right) / 80) ** 0.5
            results.append(
                about
                | {
                    "benchmark": "questions",
                    "metric": "exact_match",
                    "unit": "fraction",
                    "value": right,
                    "standard_error": error,
                    "n": 80,
                }
            )
    answers = [
        {
            "domain": name,
            "question": f"Question {i} about {name}?",
            "expected": "40 marks",
            "base": "the the",
            "tuned": "40 marks" if i != 1 else "14 marks",
        }
        for name in domains
        for i in range(5)
    ]
    put("evaluation/results.json", {"results": results, "answers": answers})
    steps = [
        ("tiny base model and judge", 74.2, True),
        ("token store", 1.4, False),
        ("detection", 61.0, False),
    ]
    steps += [
        ("reference losses", 35.5, False),
        ("fine-tuning", 127.4, False),
        ("evaluation", 22.8, False),
    ]
    put(
        "timings.json",
        {
            "steps": [dict(zip(("name", "seconds", "cached"), s, strict=True)) for s in steps],
            "finished": "2026-07-01T12:00:00+00:00",
        },
    )
    return folder


def body_of(page: Path) -> str:
    """The page without its style and its script."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r"<(style|script)>.*?</\1>", "", text, flags=re.DOTALL)


def figures_of(page: str) -> list[str]:
    return re.findall(r'<figure id="figure-([\w-]+)"', page)


def cells_of(page: str, section: str, row: str) -> list[str]:
    """The texts of the first table row of a section that begins with ``row``."""
    part = page[page.index(f'<section id="{section}"') :]
    found = re.search(
        rf'<tr><th scope="row"[^>]*>(?:<i[^>]*></i>)?<bdi>{re.escape(row)}</bdi></th>(.*?)</tr>',
        part,
        re.DOTALL,
    )
    assert found
    cells = re.findall(r"<td[^>]*>(.*?)</td>", found.group(1), re.DOTALL)
    return [html.unescape(re.sub(r"<[^>]+>", "", cell)).replace("\u202f", " ") for cell in cells]


def write_results(folder: Path, results: list[dict[str, Any]]) -> None:
    (folder / "evaluation").mkdir(parents=True, exist_ok=True)
    (folder / "evaluation/results.json").write_text(json.dumps({"results": results, "answers": []}))


HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(2)></script>'
HOSTILE += '<!-- \u2028 \u202e\x00 {{ 7*7 }} <a href="https://evil.example">%{x}</a>'


def assert_harmless(page: Path) -> None:
    """Only the one script; no foreign tag, comment or control character."""
    text, body = page.read_text(encoding="utf-8"), body_of(page)
    assert text.count("<script") == text.count("</script>") == 1
    for wrong in ("<script", "<img", "<!--", "b<i>", "\u202e", "\x00"):
        assert wrong not in body
