"""Multiple choice of a user's own benchmarks, as questions and answers to compare."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from versatune_ray.domains.choices import Choices
from versatune_ray.errors import UserError
from versatune_ray.evaluation.benchmarks import choice_metrics, is_file, own_rows, question_of
from versatune_ray.runs.folder import say
from versatune_ray.settings import Config


def load_choices(config: Config) -> dict[str, list[list[Choices]]]:
    """Per domain, the multiple choice of each of its benchmarks that is a file of own records, the
    first ``evaluation.limit`` questions of each. What is left out of the benchmarks, or of what
    they ask for, is said.

    Raises:
        UserError: more records are bad than ``data.max_bad_fraction`` tolerates, or a metric that
            the harness does not count of such questions either.
    """
    found: dict[str, list[list[Choices]]] = {}
    left: list[str] = []
    for domain, benchmarks in config.evaluation.benchmarks.items():
        for one in benchmarks:
            if not is_file(one.task):
                left.append(one.task)
                continue
            key = f"evaluation.benchmarks.{domain}"
            rows = [
                Choices(
                    question_of(row),
                    tuple(row["choices" if one.choices == "texts" else "letters"]),
                    row["answer"],
                    one.metric == "acc_norm",
                )
                for row in own_rows(one, key, config.data.max_bad_fraction)
                if "choices" in row
            ]
            counted = choice_metrics(one.choices)
            if rows and one.metric not in (None, *counted):
                raise UserError(
                    f"{key}.metric: {one.metric!r} is not counted of {one.task}; valid: "
                    f"{', '.join(counted)}"
                )
            if not rows:
                left.append(one.task)
                continue
            if one.shots:
                say("evaluation", f"{key}: {one.task}: asked without its {one.shots} examples")
            found.setdefault(domain, []).append(rows[: config.evaluation.limit])
    if left:
        say(
            "evaluation",
            f"not measured here, for it is no multiple choice of your own: {', '.join(left)}; "
            f"jobs/evaluate.py measures it",
        )
    return found


def chance(benchmarks: Sequence[Sequence[Choices]]) -> float:
    """Accuracy of guessing, the mean over a domain's benchmarks."""
    return float(np.mean([np.mean([1 / len(one.answers) for one in some]) for some in benchmarks]))
