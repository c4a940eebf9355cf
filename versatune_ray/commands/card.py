"""The model card of a run, from what it left: no path of a machine is in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from versatune_ray.commands.runs import Tuned, is_folder
from versatune_ray.report.page import ONLY
from versatune_ray.report.read import read_run
from versatune_ray.report.verdict import verdict
from versatune_ray.runs.training_log import read_log

_TEMPLATE = Path(__file__).with_name("card.md.jinja")
_SETTINGS = (
    "mixture.preset", "mixture.start", "mixture.policy", "mixture.strength", "mixture.sigma",
    "mixture.delta", "mixture.epsilon", "mixture.targets", "mixture.length_correction",
    "training.epochs", "training.batch_size", "training.learning_rate", "training.adjust_every",
    "training.lora.rank", "data.max_length", "seed",
)  # fmt: skip


def card(tuned: Tuned, repository: str, base: str) -> str:
    """Markdown with the hub's head of metadata.

    Args:
        base: a Hugging Face id, or a folder, of which the name alone is told.
    """
    is_id = not is_folder(base)
    data = _read(tuned.run / "data.json")
    rows = (_read(tuned.run / "evaluation" / "results.json") or {"results": []})["results"]
    right = {
        (row["model"], row["domain"]): f"{100 * row['value']:.1f} %"
        for row in rows
        if row["benchmark"] == "questions"
    }
    saved = yaml.safe_load((tuned.run / "config.yaml").read_text(encoding="utf-8"))
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        title=repository.partition("/")[2],
        base=base if is_id else Path(base).name,
        base_is_id=is_id,
        adapter=tuned.adapter,
        domains=list(_domains(tuned.run, data, right)),
        answers=bool(right),
        unit=data.get("unit", "nats/token"),
        counted=tuned.config.mixture.unit,
        verdict=verdict(read_run(tuned.run)).sentences,
        settings=dict(_settings(tuned)),
        versions=", ".join(f"{name} {one}" for name, one in saved.get("versions", {}).items()),
        chat=(tuned.model / "tokenizer_config.json").is_file(),
    )


def _domains(
    run: Path, data: dict[str, Any], right: dict[tuple[str, str], str]
) -> Iterator[dict[str, Any]]:
    log = read_log(run)
    first, last = log.base, log.tuned
    for name in first["loss"]:
        counts = data.get("domains", {}).get(name, {})
        yield {
            "name": name.replace("|", "\\|"),
            "train": f"{counts['train']:,}" if "train" in counts else "–",
            "held_out": f"{counts['validation']:,}" if "validation" in counts else "–",
            "first": f"{100 * first['share'][name]:.1f} %",
            "last": f"{100 * last['share'][name]:.1f} %",
            "before": f"{first['loss'][name]:.3f}",
            "after": f"{last['loss'][name]:.3f}",
            "right_before": right.get(("base", name), "–"),
            "right_after": right.get(("tuned", name), "–"),
        }


def _settings(tuned: Tuned) -> Iterator[tuple[str, Any]]:
    """Those that matter to this run."""
    policy = tuned.config.mixture.policy
    for key in _SETTINGS:
        value: Any = attrgetter(key)(tuned.config)
        if value in (None, [], "") or policy not in ONLY.get(key, (policy,)):
            continue
        yield key, ", ".join(map(str, value)) if isinstance(value, list) else value


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
