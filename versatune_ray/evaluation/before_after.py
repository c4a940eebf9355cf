"""The same questions to the base model and to the tuned one, and what changed between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from versatune_ray.domains.records import Question
from versatune_ray.evaluation.questions import ask
from versatune_ray.runs.folder import say
from versatune_ray.runtime.models import model_fingerprint
from versatune_ray.settings import Config


def ask_both(
    models: Mapping[str, str],
    questions: Mapping[str, Sequence[Question]],
    config: Config,
    cache: Path,
    *,
    gpu: bool,
) -> tuple[dict[str, dict[str, list[str]]], bool]:
    """Answers by model and domain, in question order, and whether all were cached.

    Args:
        models: name → folder or Hugging Face id.
    """
    answers: dict[str, dict[str, list[str]]] = {}
    reused = True
    for name, model in models.items() if questions else ():
        answers[name], failed, cached = ask(
            model,
            model_fingerprint(model, cache),
            questions,
            config.evaluation,
            config.data.chat_template,
            cache,
            gpu=gpu,
            trust_remote_code=config.model.trust_remote_code,
            template_kwargs=config.data.chat_template_kwargs,
        )
        reused = reused and cached
        if failed:
            say(
                "evaluation",
                f"{name}: {len(failed)} questions failed and count as wrong: {failed[0]}",
            )
    return answers, reused


def changes(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line per domain and metric: base → tuned, from the rows of ``results.json``."""
    before = {
        (row["domain"], row["metric"]): row["value"] for row in rows if row["model"] == "base"
    }
    for row in rows:
        if row["model"] == "tuned":
            base = before[row["domain"], row["metric"]]
            yield (
                f"{row['domain']:<12} {row['metric']:<12} {base:.3f} → {row['value']:.3f}  "
                f"(n = {row['n']})"
            )
