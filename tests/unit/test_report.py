"""The page of a run: complete, truthful to the run's files, readable when files are missing, and
safe against what is in them.
"""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from versatune_ray.errors import UserError
from versatune_ray.report import build_report
from versatune_ray.report.read import read_run
from versatune_ray.report.training import figures

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


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate_run(tmp_path_factory.mktemp("runs") / "first", guard=True)


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


def test_a_finished_run_gives_one_page_with_every_section_and_chart(run: Path) -> None:
    page = build_report(run)
    assert page == run / "report.html"
    assert sorted(path.name for path in run.glob("*.html")) == ["report.html"]
    body = body_of(page)
    ids = re.findall(r'<section id="(\w+)"', body)
    assert ids == [
        "summary",
        "outcome",
        "detection",
        "finetuning",
        "data",
        "generations",
        "answers",
        "settings",
        "timings",
    ]
    assert figures_of(body) == [
        *("before-after", "detected-0", "shares", "losses", "degrees", "guard")
    ]
    assert "not finished" not in body and 'class="missing"' not in body
    assert len(re.findall(r"<figcaption>[A-Z].+?</figcaption>", body)) == 6
    assert page.stat().st_size < 400_000


def test_the_first_screen_tells_the_verdict_the_numbers_and_the_shares(run: Path) -> None:
    body = body_of(build_report(run)).replace("\u202f", " ")
    first = body[: body.index('<section id="outcome"')]
    assert '<p class="lead">Better in every domain, beyond two standard errors.</p>' in first
    assert re.findall(r"<dt>(.*?)</dt>", first) == [
        *("held-out loss", "exact match", "least gained", "share moved", "time")
    ]
    assert first.count('class="bar d') == first.count('class="pale d') == 6
    assert "run=first-uniform mixture.policy=constant mixture.start=uniform" in first


def test_a_run_beside_it_with_equal_shares_is_shown_and_no_longer_asked_for(tmp_path: Path) -> None:
    folder = fabricate_run(tmp_path / "mine", ("law", "code"))
    other = fabricate_run(tmp_path / "mine-uniform", ("law", "code"), seed=1)
    page = body_of(build_report(folder))
    after = {
        one["domain"]: one["value"]
        for one in json.loads((other / "evaluation/results.json").read_text())["results"]
        if one["model"] == "tuned" and one["metric"] == "loss"
    }
    assert "equal shares</bdi></th>" in page and "run=mine-uniform" not in page
    assert cells_of(page, "outcome", "law")[3] == f"{after['law']:.3f}"
    assert f"against {sum(after.values()) / 2:.3f} with equal shares" in page


def test_the_baseline_of_a_study_stands_beside_its_trials(tmp_path: Path) -> None:
    trials = tmp_path / "study" / "trials"
    mine = fabricate_run(trials / "balanced-3", ("law", "code"))
    fabricate_run(trials / "equal-shares-3", ("law", "code"), seed=1)
    table = {"title": "t", "columns": [], "rows": {}, "of": "mean", "baseline": "equal shares!"}
    (tmp_path / "study" / "study").mkdir()
    (tmp_path / "study" / "study" / "tables.json").write_text(json.dumps([table]))
    assert "with equal shares!" in body_of(build_report(mine))


def test_no_folder_of_this_machine_stands_on_the_page(tmp_path: Path) -> None:
    folder = fabricate_run(tmp_path / "mine", ("law", "code"), text="see /usr/share/dict/words")
    config = json.loads((folder / "config.yaml").read_text())
    config["model"] = {"path": "/home/me/models/tiny"}
    (folder / "config.yaml").write_text(json.dumps(config))
    page = build_report(folder).read_text()
    assert str(tmp_path) not in page and "/home/" not in page and "…/models/tiny" in page
    assert "see /usr/share/dict/words" in page  # what a model wrote is left alone


def test_only_settings_that_matter_to_the_policy_and_columns_that_say_something(
    tmp_path: Path,
) -> None:
    folder = fabricate_run(tmp_path / "mine", ("law", "code"))
    config = json.loads((folder / "config.yaml").read_text())
    config["mixture"] |= {"delta": 0.05, "epsilon": 1.0, "strength": 0.9}
    (folder / "config.yaml").write_text(json.dumps(config))
    data = json.loads((folder / "data.json").read_text())
    for row in data["domains"].values():
        row["failed"] = 0
    (folder / "data.json").write_text(json.dumps(data))
    page = body_of(build_report(folder))
    assert "<dt>σ</dt>" in page and not re.search("<dt>[δελ]</dt>", page)
    assert "<bdi>bad</bdi>" in page and "<bdi>failed</bdi>" not in page


def test_all_charts_over_time_have_one_x_axis(run: Path) -> None:
    plots = [plot for figure in figures(read_run(run)) for _, plot in figure.views]
    assert len(plots) >= 9 and {(plot.across.low, plot.across.high) for plot in plots} == {(0, 300)}
    assert {plot.log for plot in plots if plot.y.endswith("log axis")} == {True}


def test_numbers_before_and_after_are_those_of_the_results(tmp_path: Path) -> None:
    def item(model: str, domain: str, value: float, error: float | None, n: int) -> dict[str, Any]:
        kind = (
            {"benchmark": "held_out", "metric": "loss"}
            if error is None
            else {"benchmark": "questions", "metric": "exact_match"}
        )
        return {
            "model": model,
            "domain": domain,
            "unit": "",
            "value": value,
            "standard_error": error,
            "n": n,
        } | kind

    losses = [
        item("base", "law", 2.0, None, 10),
        item("tuned", "law", 1.5, None, 10),
        item("base", "code", 4.0, None, 30),
        item("tuned", "code", 4.5, None, 30),
    ]
    matches = [
        item("base", "law", 0.25, 0.03, 40),
        item("tuned", "law", 0.75, 0.04, 40),
        item("base", "code", 0.5, 0.03, 60),
        item("tuned", "code", 0.45, 0.03, 60),
    ]
    write_results(tmp_path, losses + matches)
    page = body_of(build_report(tmp_path))
    assert cells_of(page, "outcome", "law") == [
        "2.000",
        "1.500",
        "−25.0 %",
        "10",
        "25.0 % ± 3.0",
        "75.0 % ± 4.0",
        "+50.0",
        "40",
    ]
    assert cells_of(page, "outcome", "code") == [
        "4.000",
        "4.500",
        "+12.5 %",
        "30",
        "50.0 % ± 3.0",
        "45.0 % ± 3.0",
        "−5.0",
        "60",
    ]
    # Means (2+4)/2 = 3 and (1.5+4.5)/2 = 3; errors √(3²+3²)/2 = 2.12 and √(4²+3²)/2 = 2.5.
    assert cells_of(page, "outcome", "Mean over domains") == [
        "3.000",
        "3.000",
        "0.0 %",
        "40",
        "37.5 % ± 2.1",
        "60.0 % ± 2.5",
        "+22.5",
        "100",
    ]
    # 5 points are less than twice √(3²+3²) = 4.24: not called worse.
    assert "Better in law and worse in none" in page and "in code the change is within" in page


def test_losses_of_the_adjustments_stand_in_for_a_missing_evaluation(
    run: Path, tmp_path: Path
) -> None:
    lines = [
        {"step": 0, "loss": {"a": 2.0, "b": 1.0}, "share": {"a": 0.5, "b": 0.5}},
        {"step": 8, "loss": {"a": 1.0, "b": 1.1}, "share": {"a": 0.6, "b": 0.4}},
    ]
    (tmp_path / "finetune").mkdir()
    (tmp_path / "finetune/adjustments.jsonl").write_text(
        "\n".join(map(json.dumps, lines)) + '\n{"step": 16, "lo'
    )
    page = body_of(build_report(tmp_path))
    assert cells_of(page, "outcome", "a") == ["2.000", "1.000", "−50.0 %"]
    assert (
        "gave more to a (50.0\u202f% → 60.0\u202f%) and less to b (50.0\u202f% → 40.0\u202f%)"
        in page
    )
    assert "1 line(s) could not be read" in page


def test_an_empty_folder_gives_a_page_that_says_what_is_missing(tmp_path: Path) -> None:
    page = body_of(build_report(tmp_path))
    assert "This run is not finished." in page
    names = (
        "config.yaml",
        "data.json",
        "distribution.json",
        "reference/losses.json",
        "adjustments.jsonl",
        "results.json",
        "timings.json",
    )
    assert all(name in page for name in names)
    assert figures_of(page) == []


@pytest.mark.parametrize(
    "name",
    [
        "config.yaml",
        "data.json",
        "detection",
        "reference",
        "finetune",
        "evaluation",
        "timings.json",
    ],
)
@pytest.mark.parametrize("damage", ["missing", "cut off", "wrong shape"])
def test_each_part_may_be_missing_or_broken(tmp_path: Path, name: str, damage: str) -> None:
    folder = fabricate_run(tmp_path / "run", adjustments=2)
    files = [path for path in sorted((folder / name).rglob("*")) if path.is_file()] or [
        folder / name
    ]
    for file in files:
        if damage == "missing":
            file.unlink()
        elif damage == "cut off":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        else:
            file.write_text("[1, 2]")
    assert 'class="missing"' in body_of(build_report(folder))


def test_a_folder_that_is_not_there_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run folder"):
        build_report(tmp_path / "absent")


HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(2)></script>'
HOSTILE += '<!-- \u2028 \u202e\x00 {{ 7*7 }} <a href="https://evil.example">%{x}</a>'


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


def assert_harmless(page: Path) -> None:
    """Only the one script; no foreign tag, comment or control character."""
    text, body = page.read_text(encoding="utf-8"), body_of(page)
    assert text.count("<script") == text.count("</script>") == 1
    for wrong in ("<script", "<img", "<!--", "b<i>", "\u202e", "\x00"):
        assert wrong not in body


def test_nothing_is_loaded_from_anywhere(run: Path) -> None:
    body = build_report(run).read_text(encoding="utf-8")
    targets = re.findall(r"(?:src|href|action)\s*=\s*[\"']?([^\"'>\s]+)", body)
    assert all(target.startswith("#") for target in targets)
    assert "https://" not in body and "@import" not in body and "url(" not in body
    assert "<link" not in body and not re.findall(r"<[^>]*\son\w+\s*=", body)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', body)
    assert (
        policy and "default-src 'none'" in policy.group(1) and "unsafe-eval" not in policy.group(1)
    )


def test_the_first_kept_generations_of_each_domain_are_shown_and_cut(run: Path) -> None:
    detection = read_run(run).examples[0]
    table = pq.read_table(run / "detection/tiny-base/samples/0.parquet").to_pylist()
    law = [str(row["id"]) for row in table if max(SIX, key=lambda name: float(row[name])) == "law"][
        :3
    ]
    assert [item.id for item in detection.kept if item.domain == "law"] == law
    assert all(
        len(item.text) <= 402 and item.probabilities[0][0] == item.domain for item in detection.kept
    )


def test_long_runs_with_many_domains_stay_small(tmp_path: Path) -> None:
    folder = fabricate_run(
        tmp_path / "long", tuple(f"domain {i}" for i in range(50)), adjustments=100
    )
    page = build_report(folder)
    assert page.stat().st_size < 2_500_000
    body = body_of(page)
    assert "(60 of 101 rows)" in body
    (losses,) = (one for one in figures(read_run(folder)) if one.id == "losses")
    assert len(losses.views[0][1].quiet) == 50 - 12
    assert all(len(one.points) <= 160 for _, plot in losses.views for one in plot.series)


def test_numbers_that_are_not_finite_are_dashes(tmp_path: Path) -> None:
    write_results(tmp_path, [])
    text = '{"results": [{"model": "base", "domain": "law", "benchmark": "held_out", '
    text += '"metric": "loss", "value": NaN, "n": 3},'
    text += '{"model": "tuned", "domain": "law", "benchmark": "held_out", '
    text += '"metric": "loss", "value": 2.5, "n": 3}]}'
    (tmp_path / "evaluation/results.json").write_text(text)
    assert cells_of(body_of(build_report(tmp_path)), "outcome", "law")[:3] == ["–", "2.500", "–"]


def test_what_of_the_records_was_not_read_stands_on_the_page(tmp_path: Path) -> None:
    folder = fabricate_run(tmp_path)
    data = json.loads((folder / "data.json").read_text())
    name = next(iter(data["domains"]))
    data["domains"][name] |= {"shapes": {"messages": 7}, "unused_fields": {"<source>": 1234}}
    (folder / "data.json").write_text(json.dumps(data))
    page = build_report(folder).read_text(encoding="utf-8")
    assert "field that is not read" in page and "&lt;source&gt;" in page and "1,234" in page
