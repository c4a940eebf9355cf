"""Functions that the tasks beside this file name; the harness loads it by path."""

import re
from typing import Any

from versatune_ray.evaluation.benchmarks import code_docs, pass_at_1, run_tests

__all__ = ["code_docs", "lawbench", "pass_at_1", "run_tests", "scieval"]

_ANSWER = re.compile(r"^正确答案：([A-D])")


def lawbench(dataset: Any) -> Any:
    """Records of instruction, question and answer (正确答案：X。); those with several right answers
    go.
    """
    plain = dataset.filter(lambda row: re.match(r"^正确答案：[A-D]\W*$", row["answer"]))
    return plain.map(lambda row: {"answer": _ANSWER.match(row["answer"])[1]})  # type: ignore[index]


def scieval(dataset: Any) -> Any:
    """The multiple-choice questions of SciEval; their text ends with the listed choices and
    "Answer:".
    """
    chosen = dataset.filter(
        lambda row: (
            row["type"] == "multiple-choice"
            and len(row["answer"]) == 1
            and row["answer"][0] in "ABCD"
        )
    )
    return chosen.map(lambda row: {"right": row["answer"][0], "asked": row["question"].rstrip()})
