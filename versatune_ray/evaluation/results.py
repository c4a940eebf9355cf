"""``evaluation/results.json``: the same questions and the same held-out records, before and
after.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from versatune_ray.domains.records import Question
from versatune_ray.evaluation.questions import exact_match
from versatune_ray.runs.training_log import TrainingLog


def results(
    questions: Mapping[str, Sequence[Question]],
    answers: Mapping[str, Mapping[str, Sequence[str]]],
    log: TrainingLog,
    held_out_records: Mapping[str, int],
    unit: str,
) -> dict[str, Any]:
    """Rows of (model, domain, benchmark, metric, value, standard error, n), and every question with
    all answers.

    Args:
        answers: per model name ("base", "tuned"), per domain, in question order.
        log: has the held-out losses before and after.
        held_out_records: number of records measured per domain.
    """
    rows: list[dict[str, Any]] = []
    for model, line in (("base", log.base), ("tuned", log.tuned)):
        for domain, loss in line["loss"].items():
            shown = {
                "benchmark": "held_out",
                "metric": "loss",
                "unit": unit,
                "value": loss,
                "standard_error": None,
            }
            rows.append(
                {"model": model, "domain": domain} | shown | {"n": held_out_records[domain]}
            )
    for model, by_domain in answers.items():
        rows += [
            {"model": model, "domain": domain} | exact_match(given, questions[domain])
            for domain, given in by_domain.items()
        ]
    asked = [
        {"domain": domain, "question": question.question, "expected": question.answer}
        | {model: by_domain[domain][place] for model, by_domain in answers.items()}
        for domain, listed in questions.items()
        for place, question in enumerate(listed)
    ]
    return {"results": rows, "answers": asked}
