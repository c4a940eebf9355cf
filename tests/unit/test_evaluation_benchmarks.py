"""A user's records become tasks of the harness: what is asked, what counts, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from versatune_ray.errors import UserError
from versatune_ray.evaluation.benchmarks import Asked, asked, compare, own_rows
from versatune_ray.evaluation.catalogue import TASKS, declared, task_manager
from versatune_ray.evaluation.harness import _resources
from versatune_ray.evaluation.scores import Score, mean, scores, table
from versatune_ray.settings.detection import Engine
from versatune_ray.settings.evaluation import Benchmark
from versatune_ray.settings.loading import parse

pytest.importorskip("lm_eval")

CHOICE = {"question": "How many legs has a spider?", "choices": ["six", "eight"], "answer": 1}
HUMANEVAL = {
    "prompt": "def one():\n",
    "test": "def check(f):\n    assert f() == 1",
    "entry_point": "one",
    "task_id": "x/0",
}
MBPP = {
    "text": "Write one().",
    "code": "",
    "test_list": ["assert one() == 1"],
    "test_setup_code": "import math",
    "task_id": 1,
}


def written(folder: Path, *records: Any, name: str = "mine.jsonl") -> str:
    (folder / name).write_text("".join(json.dumps(one) + "\n" for one in records))
    return str(folder / name)


def read(folder: Path, benchmark: Any, **settings: Any) -> Asked:
    config = parse(
        {"storage": str(folder), "evaluation": {"benchmarks": {"law": [benchmark]}} | settings}
    )
    (one,) = asked(config, folder / ".cache")
    return one


def documents(one: Asked) -> tuple[Any, list[dict[str, Any]]]:
    """The task as the harness builds it, and its documents."""
    task = task_manager().load([one.spec])["tasks"][one.name]
    return task, list(task.test_docs())


def test_multiple_choice_lists_letters_or_compares_the_texts(tmp_path: Path) -> None:
    file = written(
        tmp_path, CHOICE, {"question": "Sum of 1 and 1?", "choices": ["1", "2", "3"], "answer": "B"}
    )
    task, (first, second) = documents(read(tmp_path, file))
    assert task.doc_to_text(first) == "How many legs has a spider?\nA. six\nB. eight\nAnswer:"
    assert task.doc_to_choice(first) == ["A", "B"] and task.doc_to_target(first) == 1
    assert task.doc_to_choice(second) == ["A", "B", "C"] and task.doc_to_target(second) == 1
    task, (first, second) = documents(read(tmp_path, {"task": file, "choices": "texts"}))
    assert task.doc_to_text(first) == "How many legs has a spider?\nAnswer:"
    assert task.doc_to_choice(second) == ["1", "2", "3"] and task.doc_to_target(second) == 1


def test_a_question_is_answered_greedily_and_compared_forgivingly(tmp_path: Path) -> None:
    file = written(tmp_path, {"question": "Capital of France?", "answer": "Paris"})
    task, (document,) = documents(read(tmp_path, file, max_tokens=7))
    assert (
        task.config.output_type == "generate_until"
        and task.config.generation_kwargs["max_gen_toks"] == 7
    )
    assert task.doc_to_text(document) == "Capital of France?\nAnswer:"
    assert compare(document, [" paris. \nand more"]) == {"exact_match": 1.0}
    assert compare(document, ["Lyon"]) == {"exact_match": 0.0}


def test_of_several_right_answers_any_counts(tmp_path: Path) -> None:
    several = {"question": "A primary colour?", "answer": ["red", " blue", "red"]}
    file = written(tmp_path, several, {"question": "Capital of France?", "answer": "Paris"})
    task, (first, second) = documents(read(tmp_path, file))
    assert task.doc_to_target(first) == "red" and first["answers"] == ["red", "blue"]
    assert [compare(first, [one])["exact_match"] for one in ("red", "Blue.", "green")] == [1, 1, 0]
    assert second["answers"] == ["Paris"]


def test_dates_stay_texts(tmp_path: Path) -> None:
    days = ["2011-01-02", "2012-03-04"]
    file = written(tmp_path, *({"question": day, "answer": day} for day in days))
    task, documents_of = documents(read(tmp_path, file))
    assert [task.doc_to_text(one) for one in documents_of] == [f"{day}\nAnswer:" for day in days]
    assert compare(documents_of[0], ["2011-01-02"]) == {"exact_match": 1.0}
    choices = written(tmp_path, {"question": "When?", "choices": days, "answer": 1}, name="c.jsonl")
    task, (one,) = documents(read(tmp_path, {"task": choices, "choices": "texts"}))
    assert task.doc_to_choice(one) == days


@pytest.mark.parametrize(
    ("record", "given", "valid"),
    [
        (CHOICE, {"metric": "acc_norm"}, "acc"),
        (CHOICE, {"metric": "f1", "choices": "texts"}, "acc, acc_norm"),
        ({"question": "a", "answer": "b"}, {"metric": "acc"}, "exact_match"),
        (HUMANEVAL, {"metric": "acc"}, "pass_at_1"),
    ],
)
def test_a_metric_that_is_not_counted_is_told_before_a_model_is_loaded(
    tmp_path: Path, record: dict[str, Any], given: dict[str, str], valid: str
) -> None:
    file = written(tmp_path, record)
    with pytest.raises(UserError, match=rf"law\.metric: .* not counted of .*; valid: {valid}$"):
        read(tmp_path, {"task": file} | given, run_code=True)


@pytest.mark.parametrize(
    ("record", "right", "wrong"),
    [
        (HUMANEVAL, "    return 1\n", "    return 2\n"),
        (MBPP, "def one():\n    return math.floor(1.5)\n", "def one():\n    return 2\n"),
    ],
)
def test_programs_are_run_against_their_tests(
    tmp_path: Path, record: dict[str, Any], right: str, wrong: str
) -> None:
    file = written(tmp_path, record)
    task, (document,) = documents(read(tmp_path, file, run_code=True))
    assert task.process_results(
        document, ["import math\n" + right if "text" in record else right]
    ) == {"pass_at_1": 1.0}
    assert task.process_results(document, [wrong]) == {"pass_at_1": 0.0}
    with pytest.raises(
        UserError,
        match=r"evaluation\.benchmarks\.law: mine runs programs .*; "
        r"evaluation\.run_code=true allows it",
    ):
        read(tmp_path, file)


@pytest.mark.parametrize(
    ("records", "told"),
    [
        (
            [CHOICE | {"answer": 2}],
            r"mine\.jsonl:1: answer is 2, but the choices count from 0 to 1 "
            r"\(evaluation\.benchmarks\.law: 1 of 1 records are bad; no other is good\)",
        ),
        (
            [CHOICE] * 2 + [CHOICE | {"answer": 2}],  # 1 / 3, rounded up
            r"mine\.jsonl:3: .* 1 of 3 records are bad; mend it, or set "
            r"data\.max_bad_fraction=0\.334\)",
        ),
        ([CHOICE, CHOICE | {"choices": []}], r"mine\.jsonl:2: choices must be a list"),
        (
            [CHOICE, {"question": "a", "answer": "b"}],
            r"mine\.jsonl:2: another shape than the first record",
        ),
        ([{"question": "a"}], r"mine\.jsonl:1: unknown shape: fields question"),
        (
            [{"prompt": "def f():", "test": "x"}],
            r"mine\.jsonl:1: no entry_point; a code record has",
        ),
        ([], r"mine\.jsonl: no records"),
    ],
)
def test_a_broken_record_is_told_with_its_line(
    tmp_path: Path, records: list[Any], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        read(tmp_path, written(tmp_path, *records))


def test_bad_records_that_are_tolerated_are_left_out_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = parse({"storage": str(tmp_path), "data": {"max_bad_fraction": 0.4}})
    one = Benchmark(task=written(tmp_path, CHOICE, CHOICE | {"answer": 2}, CHOICE))
    rows = own_rows(one, "evaluation.benchmarks.law", config.data.max_bad_fraction)
    assert len(rows) == 2
    told = capsys.readouterr().out
    assert "evaluation.benchmarks.law: 1 of 3 records are left out: " in told
    assert "mine.jsonl:2: answer is 2" in told


def test_names_are_used_once_and_must_be_known(tmp_path: Path) -> None:
    file = written(tmp_path, CHOICE)
    config = {
        "storage": str(tmp_path),
        "evaluation": {"benchmarks": {"law": [file], "code": [file]}},
    }
    with pytest.raises(
        UserError,
        match=r"benchmarks\.code: two benchmarks are called 'mine'; give one of them another name",
    ):
        asked(parse(config), tmp_path)
    with pytest.raises(
        UserError,
        match=r"evaluation\.benchmarks\.law: unknown task 'hellaswg'; did you mean 'hellaswag'\?",
    ):
        read(tmp_path, "hellaswg")
    with pytest.raises(UserError, match="file not found"):
        read(tmp_path, "there/is/none.jsonl")


def test_a_key_that_a_task_does_not_heed_is_refused_and_labels_place_its_engine(
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError, match="hellaswag asks in its own way; choices is of own"):
        read(tmp_path, {"task": "hellaswag", "choices": "texts"})
    engine = Engine(labels={"market-type": "spot"})
    assert _resources(engine, gpu=False)["label_selector"] == {"market-type": "spot"}
    assert "label_selector" not in _resources(Engine(), gpu=False)
    wide = Engine(
        tensor_parallel=4, cpus=2, resources={"x": 1}, options={"pipeline_parallel_size": 2}
    )
    taken = _resources(wide, gpu=True)
    assert (taken["num_cpus"], taken["num_gpus"], taken["resources"]) == (16, 8, {"x": 8})


def test_the_papers_benchmarks_are_all_known_tasks(tmp_path: Path) -> None:
    config = parse({"storage": str(tmp_path), "evaluation": {"preset": "paper", "run_code": True}})
    found = {one.spec: one.shots for one in asked(config, tmp_path)}
    # Table 1: six with one shot, FinanceIQ five
    assert len(found) == 12 and sum(shots for shots in found.values() if shots) == 6 * 1 + 5
    assert all(file.stem in task_manager().task_index for file in TASKS.glob("*.yaml"))


def test_our_tasks_read_the_records_as_they_are_published() -> None:
    from datasets import Dataset

    from versatune_ray.evaluation.tasks.functions import lawbench, scieval

    law = [("正确答案：B。", 1), ("正确答案：AB。", 0), ("不知道", 0)]
    rows = lawbench(
        Dataset.from_list(
            [{"instruction": "…", "question": "A:…;B:…", "answer": answer} for answer, _ in law]
        )
    )
    assert rows["answer"][:] == ["B"]
    science = [("multiple-choice", ["D"]), ("judge", ["yes"]), ("multiple-choice", ["A", "B"])]
    rows = scieval(
        Dataset.from_list(
            [
                {"question": "…\n\nAnswer:  ", "type": kind, "answer": answer}
                for kind, answer in science
            ]
        )
    )
    assert rows["right"][:] == ["D"] and rows["asked"][:] == ["…\n\nAnswer:"]


def row(
    model: str, domain: str, benchmark: str, value: float, error: float | None = 0.03
) -> dict[str, Any]:
    return {
        "model": model,
        "domain": domain,
        "benchmark": benchmark,
        "value": value,
        "standard_error": error,
    }


def test_a_domains_score_is_the_mean_of_its_benchmarks_and_the_average_that_of_domains() -> None:
    rows = [
        row("base", "law", "a", 0.2),
        row("base", "law", "b", 0.4, 0.04),
        row("base", "code", "c", 0.9),
    ]
    rows += [
        row("tuned", "law", "a", 0.3),
        row("tuned", "law", "b", 0.5),
        row("tuned", "code", "c", 0.8),
        row("tuned", "code", "d", 0.0),
    ]
    found = scores(rows)
    # √(0.03² + 0.04²) / 2
    assert found["base"]["law"] == Score(pytest.approx(0.3), pytest.approx(0.025))
    assert found["base"]["average"].value == pytest.approx(0.6)
    assert found["tuned"]["code"].value == pytest.approx(0.8)  # d was not measured on base
    assert mean([Score(0.5, None), Score(0.7, 0.1)]) == Score(pytest.approx(0.6), None)
    assert table(found).splitlines()[1].split() == [
        "base",
        "30.0",
        "±",
        "2.5",
        "90.0",
        "±",
        "3.0",
        "60.0",
        "±",
        "2.0",
    ]


def test_an_answer_leaves_half_of_the_context_to_its_question() -> None:
    from versatune_ray.evaluation.harness import _fitting

    spec = {"task": "code", "generation_kwargs": {"max_gen_toks": 1024, "until": ["x"]}}
    assert _fitting(spec, 512) == {
        "task": "code",
        "generation_kwargs": {"max_gen_toks": 256, "until": ["x"]},
    }
    assert _fitting(spec, 4096) == spec and _fitting("hellaswag", 512) == "hellaswag"


def test_a_group_is_found_with_its_tasks_and_a_tag_with_its_own() -> None:
    """Against what the harness's files say: ai2_arc is a tag in arc_easy's file, blimp's group
    names its 67 tasks.
    """
    index = task_manager(["ai2_arc", "blimp"]).task_index
    assert index["ai2_arc"].tags == {"arc_easy", "arc_challenge"}
    named = index["blimp"].cfg["task"]
    assert len(named) == 67 and all(name in index for name in named)
    assert "hellaswag" not in index
    assert {"hellaswag", "mmlu", "blimp"} <= declared()
