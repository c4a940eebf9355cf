"""Benchmarks as tasks of lm-evaluation-harness: its own by name, ours from ``tasks/``, and records
of a user, known by their shape.

| records | asked | counted |
|---|---|---|
| ``question``, ``choices``, ``answer`` (index, letter or text) | which choice is most likely |
accuracy |
| ``question``, ``answer`` (or any shape of training record) | greedy answer | exact match,
forgiving case, spacing and a final full stop |
| ``prompt``, ``test``, ``entry_point`` (HumanEval) or ``text``, ``test_list`` (MBPP) | a program |
whether its tests pass |
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from versatune_ray.domains.example import tolerating
from versatune_ray.domains.readers import read_records
from versatune_ray.domains.records import BadRecord, interpret, read_choices
from versatune_ray.domains.spec import expand
from versatune_ray.errors import UserError
from versatune_ray.evaluation.catalogue import declared, edited, task_manager
from versatune_ray.evaluation.questions import is_match
from versatune_ray.evaluation.sandbox import passes
from versatune_ray.runs.cache import cached
from versatune_ray.runs.folder import say
from versatune_ray.settings import Benchmark, Config, nearest

_STOPS = {"humaneval": ["\nclass", "\ndef", "\n#", "\nif", "\nprint"], "mbpp": ["[DONE]"]}
_CODE_TOKENS = 1024
_FILE = "test.parquet"
Row = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """A benchmark as the harness takes it.

    spec: a task's name, or its configuration. identity: what a cached result depends on, besides
    model and settings. metric: what counts of it; None: the usual one.
    """

    domain: str
    name: str
    spec: str | dict[str, Any]
    shots: int | None
    identity: Mapping[str, Any]
    metric: str | None = None


def check_benchmarks(config: Config) -> None:
    """Refuse what ``asked`` refuses, before anything is started."""
    asked(config, config.cache_folder)


def asked(config: Config, cache: Path) -> list[Asked]:
    """All benchmarks of ``config``, in order; own records are read, and written in the form that
    the harness reads.

    Raises:
        UserError: lm-evaluation-harness is missing, a task unknown, a record broken, a name used
            twice, or code would run that is not allowed to.
    """
    listed = [
        (domain, benchmark)
        for domain, some in config.evaluation.benchmarks.items()
        for benchmark in some
    ]
    if not listed:
        raise UserError(
            "evaluation.benchmarks: missing; name some for a domain, or take the paper's with "
            "evaluation.preset=paper"
        )
    try:
        from lm_eval import __version__
    except ImportError:
        raise UserError(
            "evaluation.benchmarks: needs lm-evaluation-harness; pip install 'versatune-ray[eval]'"
        ) from None
    index = task_manager([one.task for _, one in listed if not is_file(one.task)]).task_index
    found: list[Asked] = []
    for domain, benchmark in listed:
        name, key = (
            benchmark.name or Path(benchmark.task).name.partition(".")[0],
            f"evaluation.benchmarks.{domain}",
        )
        if any(name == one.name for one in found):
            raise UserError(
                f"{key}: two benchmarks are called {name!r}; give one of them another name: "
                f"{{task: …, name: …}}"
            )
        spec: str | dict[str, Any] = benchmark.task
        if is_file(benchmark.task):
            spec, identity = _own(name, benchmark, config, cache, key)
            settings: Mapping[str, Any] = spec
        else:
            settings = _known(index, benchmark.task, key)
            identity = {
                "task": benchmark.task,
                "harness": __version__,
                "files": edited(index, benchmark.task),
            }
        if settings.get("unsafe_code") and not config.evaluation.run_code:
            raise UserError(
                f"{key}: {name} runs programs that the model writes; evaluation.run_code=true "
                f"allows it"
            )
        if benchmark.metric is not None:
            identity = {**identity, "metric": benchmark.metric}
        found.append(Asked(domain, name, spec, benchmark.shots, identity, benchmark.metric))
    return found


def is_file(task: str) -> bool:
    """Whether a benchmark's task is a file of own records, and no task by name."""
    return (
        "/" in task
        or Path(task).suffix in (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".gz")
        or Path(task).exists()
    )


def _known(index: Mapping[str, Any], task: str, key: str) -> Mapping[str, Any]:
    """The harness's entry for a task; a typo is told before a model is loaded."""
    if task not in index:
        names = sorted(declared(), key=lambda name: "_" in name)  # the plain ones first
        raise UserError(
            f"{key}: unknown task {task!r}; {nearest(task, names)} (or a file of your own records)"
        )
    return index[task].cfg or {}


def _own(
    name: str, benchmark: Benchmark, config: Config, cache: Path, key: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A user's records as a task, and its identity."""
    rows = own_rows(benchmark, key, config.data.max_bad_fraction)
    if not rows:
        raise UserError(f"{benchmark.task}: no records ({key})")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    # with their types: read from JSON, texts that are dates would become times
    parts = {"records": digest, "format": "parquet"}
    folder, _ = cached(cache, "benchmark", parts, lambda work: _write(work / _FILE, rows))
    task: dict[str, Any] = {
        "task": name,
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": {"test": str(folder / _FILE)}},
        "test_split": "test",
        "fewshot_split": "test",
        "metadata": {"version": digest},
    } | _form(rows[0], benchmark.choices, config.evaluation.max_tokens)
    counted = [getattr(one["metric"], "__name__", one["metric"]) for one in task["metric_list"]]
    check_metric(benchmark, counted, key)
    return task, {
        "records": digest,
        "choices": benchmark.choices,
        "max_tokens": config.evaluation.max_tokens,
    }


def _write(file: Path, rows: list[Row]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(rows), file)


def question_of(row: Row) -> str:
    """What a model reads before it answers a record with choices."""
    return f"{row['question']}\nAnswer:"


def check_metric(benchmark: Benchmark, counted: Sequence[str], key: str) -> None:
    """Refuse a metric of own records that is none of those ``counted``."""
    if benchmark.metric is not None and benchmark.metric.partition(",")[0] not in counted:
        raise UserError(
            f"{key}.metric: {benchmark.metric!r} is not counted of {benchmark.task}; valid: "
            f"{', '.join(counted)}"
        )


def choice_metrics(choices: str) -> list[str]:
    """What is counted of multiple choice: per character only where answers differ in length."""
    return ["acc"] if choices == "letters" else ["acc", "acc_norm"]


def _form(row: Row, choices: str, max_tokens: int) -> dict[str, Any]:
    """How records of the kind of ``row`` are asked and counted."""
    if "choices" in row:
        return {
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}\nAnswer:",
            "doc_to_choice": choices if choices == "letters" else "choices",
            "doc_to_target": "answer",
            "metric_list": [
                {"metric": metric, "aggregation": "mean", "higher_is_better": True}
                for metric in choice_metrics(choices)
            ],
        }
    if "tests" in row:
        return {
            "output_type": "generate_until",
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{tests}}",
            "generation_kwargs": {
                "until": _STOPS[row["kind"]],
                "max_gen_toks": _CODE_TOKENS,
                "do_sample": False,
            },
            "process_results": run_tests,
            "metric_list": [{"metric": pass_at_1, "aggregation": "mean", "higher_is_better": True}],
            "unsafe_code": True,
        }
    return {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}\nAnswer:",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": max_tokens, "do_sample": False},
        "process_results": compare,
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }


def compare(doc: Mapping[str, Any], answers: Sequence[str]) -> dict[str, float]:
    """``exact_match`` of a written answer, with any that is right."""
    return {"exact_match": float(is_match(answers[0], doc["answers"]))}


def run_tests(doc: Mapping[str, Any], answers: Sequence[str]) -> dict[str, float]:
    """``pass_at_1``: whether the program passes its tests, in a process of its own."""
    return {"pass_at_1": float(passes(doc["given"] + answers[0], doc["tests"]))}


def pass_at_1(items: Sequence[float]) -> Sequence[float]:
    """Only the metric's name; ``run_tests`` counts."""
    return items


def code_record(fields: Mapping[str, Any]) -> Row:
    """A HumanEval or MBPP record as one form. ``given`` is the part of the program that the model
    continues.

    Raises:
        KeyError: a field is missing.
    """
    if "test_list" in fields:
        tests = list(fields["test_list"])
        shown, setup = "\n".join(tests[:3]), fields.get("test_setup_code") or ""
        task = (
            f"You are an expert Python programmer, and here is your task: {fields['text']} Your "
            f"code should pass these tests:"
        )
        return {
            "kind": "mbpp",
            "question": f"{task}\n\n{shown}\n[BEGIN]\n",
            "given": "",
            "tests": "\n".join([setup, *tests]),
        }
    check = f"{fields['test']}\ncheck({fields['entry_point']})"
    return {
        "kind": "humaneval",
        "question": fields["prompt"],
        "given": fields["prompt"],
        "tests": check,
    }


def code_docs(dataset: Any) -> Any:
    """``process_docs`` of our tasks for HumanEval and MBPP."""
    return dataset.map(code_record, remove_columns=dataset.column_names)


def own_rows(benchmark: Benchmark, key: str, tolerated: float) -> list[Row]:
    """The records of a file, each as one form; all of one kind.

    Args:
        tolerated: share of records that may be bad (``data.max_bad_fraction``): they are left out,
            which is said.

    Raises:
        UserError: more are bad, or one is of another shape than the first.
    """
    rows: list[Row] = []
    bad: list[str] = []
    for source in expand(benchmark.task, key):
        for item in read_records(source):
            try:
                if item.record is None:
                    raise BadRecord(item.problem)
                row = _row(item.record, benchmark.choices)
            except BadRecord as error:
                bad.append(f"{item.location}: {error}")
                continue
            if rows and row.keys() != rows[0].keys():
                raise UserError(
                    f"{item.location}: another shape than the first record; one benchmark has one "
                    f"({key})"
                )
            rows.append(row)
    read = len(bad) + len(rows)
    if len(bad) > tolerated * read:
        way_out = f"mend it, or set {tolerating(len(bad), read)}" if rows else "no other is good"
        raise UserError(f"{bad[0]} ({key}: {len(bad)} of {read} records are bad; {way_out})")
    if bad:
        say("evaluation", f"{key}: {len(bad)} of {read} records are left out: {bad[0]}")
    return rows


def _row(record: Mapping[str, Any], choices: str) -> Row:
    fields = {name: value for name, value in record.items() if value is not None}
    if "choices" in fields:
        question, texts, answer = read_choices(fields)
        letters = list(ascii_uppercase[: len(texts)])
        if choices == "letters":
            question = "\n".join(
                [
                    question,
                    *(f"{letter}. {text}" for letter, text in zip(letters, texts, strict=True)),
                ]
            )
        return {"question": question, "choices": texts, "letters": letters, "answer": answer}
    if "test" in fields or "test_list" in fields:
        try:
            return code_record(fields)
        except KeyError as error:
            raise BadRecord(
                f"no {error.args[0]}; a code record has prompt, test and entry_point, or text and "
                f"test_list"
            ) from None
    reading = interpret(fields)
    turns = reading.example.messages
    if [turn["role"] for turn in turns] != ["user", "assistant"]:
        raise BadRecord("expected one question and one answer, no further turns")
    first = turns[1]["content"].strip()
    others = [other.strip() for other in reading.answers if other.strip()]
    answers = list(dict.fromkeys([first, *others]))
    return {"question": turns[0]["content"], "answer": first, "answers": answers}
