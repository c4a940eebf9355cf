"""Multiple choice of a user's own benchmarks, as questions and answers to compare."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from versatune_ray.domains.choices import Choices
from versatune_ray.evaluation.benchmarks import (
    check_metric,
    choice_metrics,
    is_file,
    own_rows,
    question_of,
)
from versatune_ray.runs.folder import say
from versatune_ray.settings import Benchmark, Config


def load_choices(config: Config) -> dict[str, list[list[Choices]]]:
    """Per domain, the multiple choice of each of its benchmarks that is a file of own records, the
    first ``evaluation.limit`` questions of each. Other benchmarks, and what is to be asked with
    solved examples or as a chat, are left out, which is said.

    Raises:
        UserError: more records are bad than ``data.max_bad_fraction`` tolerates, or a metric that
            the harness does not count of such questions either.
    """
    found: dict[str, list[list[Choices]]] = {}
    left: list[str] = []
    for domain, benchmarks in config.evaluation.benchmarks.items():
        for one in benchmarks:
            key = f"evaluation.benchmarks.{domain}"
            plain = not one.shots and not config.evaluation.chat
            some = _choices(one, key, config) if plain and is_file(one.task) else []
            if some:
                found.setdefault(domain, []).append(some[: config.evaluation.limit])
            else:
                left.append(f"{domain}: {one.name or one.task}")
    if left:
        say(
            "choices",
            f"not measured here are {', '.join(left)}: only own multiple choice is, without solved "
            f"examples and not as a chat (jobs/evaluate.py measures all)",
        )
    return found


def _choices(one: Benchmark, key: str, config: Config) -> list[Choices]:
    """None where its records have no choices."""
    rows = own_rows(one, key, config.data.max_bad_fraction)
    if not rows or "choices" not in rows[0]:
        return []
    check_metric(one, choice_metrics(one.choices), key)
    answers = "choices" if one.choices == "texts" else "letters"
    per_character = (one.metric or "").partition(",")[0] == "acc_norm"
    return [
        Choices(question_of(row), tuple(row[answers]), row["answer"], per_character) for row in rows
    ]


def chance(benchmarks: Sequence[Sequence[Choices]]) -> float:
    """Accuracy of guessing, the mean over a domain's benchmarks."""
    return float(np.mean([np.mean([1 / len(one.answers) for one in some]) for some in benchmarks]))
