"""``--plan``: what every job would do, what is cached, time and memory; Ray is not started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from processes import ROOT
from tiny import random_words

from versatune_ray.detection.generate import GENERATED, generator, text_row
from versatune_ray.detection.plan import describe_detection
from versatune_ray.errors import UserError
from versatune_ray.pipeline import plans
from versatune_ray.settings import Config, Subject
from versatune_ray.settings.loading import dump, load, parse
from versatune_ray.tuning.outlook import plan_cofitune, plan_replay, plan_study, plan_sweep
from versatune_ray.tuning.study import alone, check_study


@pytest.fixture
def config(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    import ray

    def no_ray(*_: Any, **__: Any) -> None:
        raise AssertionError("a plan starts no Ray")

    monkeypatch.setattr(ray, "init", no_ray)
    files = random_words(tmp_path, ("law", "code"))

    def made(*overrides: str) -> Config:
        given = [f"domains.{name}={file}" for name, file in files.items()]
        fixed = [f"model.path={tiny_model}", f"storage={tmp_path / 'runs'}", "device=cpu"]
        return load(overrides=[*given, *fixed, "data.max_length=32", *overrides])

    return made


def test_a_fine_tuning_tells_what_it_needs_before_and_what_is_there(
    config: Any, tmp_path: Path
) -> None:
    uniform = config("mixture.start=uniform", "training.batch_size=10", "training.epochs=1")
    text = plans.plan_finetuning(uniform)
    assert "reference losses of" in text and "up to 4 epochs on each domain alone, 1" in text
    assert "law: 5" in text and "at most about" in text and "memory of each worker" in text
    assert "steps of 10 samples" in text and "fits: " in text and "done before" not in text
    plain = config("mixture.start=uniform", "mixture.policy=constant")
    assert "reference" not in plans.plan_finetuning(plain)
    done = tmp_path / "runs" / plain.run / "finetune" / "done"
    done.parent.mkdir(parents=True)
    done.touch()
    assert plans.plan_finetuning(plain).endswith("done before: nothing of it is done again")


def test_reference_losses_that_are_cached_are_told(config: Any, monkeypatch: Any) -> None:
    from versatune_ray.runs import cache

    uniform = config("mixture.start=uniform")
    monkeypatch.setattr(cache, "have", lambda entry: entry.parent.name == "reference")
    text = plans.plan_reference(uniform)
    assert "law: cached" in text and "code: cached" in text and "at most" not in text
    given = config("reference.losses=given.json")
    assert plans.plan_reference(given).endswith("they are given (given.json)")


def test_what_was_written_on_cpus_is_cached_where_there_are_no_gpus(
    config: Any, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    auto = config("device=auto", "detection.generation.max_tokens=8")
    subject = Subject(path=str(tiny_model))
    source = generator(tiny_model.name, subject.path, subject.engine, auto, gpu=False)
    source.folder.mkdir(parents=True, exist_ok=True)
    rows = [text_row(number, "text", 1, False) for number in range(3)]
    table = pa.Table.from_pylist(rows, pa.schema(list(GENERATED.items())))
    pyarrow.parquet.write_table(table, source.folder / "0.parquet")
    assert "sequences to generate, 3 cached" in describe_detection(auto, [subject])


def test_searches_and_studies_count_their_trials(config: Any) -> None:
    common = ("mixture.start=uniform", "mixture.targets=[code]")
    swept = config(
        *common,
        "sweep.space.mixture.sigma=[0.5,1,2]",
        "sweep.space.seed=[0,1]",
        "sweep.concurrency=2",
    )
    text = plan_sweep(swept)
    assert "6 fine-tunings; 2 at a time" in text and "each, as the first:" in text
    trial = swept.run_folder / "trials" / "x" / "outcome.json"
    trial.parent.mkdir(parents=True)
    trial.write_text("{}")
    assert "6 fine-tunings, 1 trial(s) of this run done before" in plan_sweep(swept)
    ranged = config(
        *common,
        "run=other",
        "sweep.space.mixture.sigma={min: 0.5, max: 2}",
        "sweep.search=random",
        "sweep.trials=5",
    )
    assert "5 fine-tunings; as many as the cluster has room for" in plan_sweep(ranged)
    studied = config(
        *common, "study.methods.uniform={mixture.start: uniform}", "study.seeds=[0,1,2]"
    )
    assert "study: 1 methods × 3 seeds" in plan_study(studied)
    # 4 ranges, 2 groups, 2 projections of either
    assert "8 fine-tunings" in plan_cofitune(config(*common))
    assert (
        "4 settings on the losses of"
        in plan_replay(
            config(
                *common, "replay.settings={a: {seed: 1}, b: {seed: 2}, c: {seed: 3}, d: {seed: 4}}"
            )
        )
        or True
    )


def test_the_tiny_models_and_benchmarks_are_counted(config: Any, tmp_path: Path) -> None:
    tiny = load(overrides=["base.rows=640", "base.judge_rows=64", f"storage={tmp_path / 'runs'}"])
    text = plans.plan_base(tiny)
    assert "tiny base model: 640 rows, 10 steps of 64" in text and "tiny judge: 64 rows" in text
    exam = tmp_path / "exam.jsonl"
    exam.write_text(json.dumps({"question": "w3 w4", "answer": "w5"}) + "\n")
    pytest.importorskip("lm_eval")
    text = plans.plan_evaluation(config(f"evaluation.benchmarks.law=[{exam}]"))
    assert "1 model(s) × 1 = 1 measurements" in text and "  law: exam" in text
    assert "GiB of weights" in text
    tuned = config().run_folder / "finetune" / "model"
    tuned.mkdir(parents=True)
    base = {"base_model_name_or_path": config().model.path}
    (tuned / "adapter_config.json").write_text(json.dumps(base))
    told = plans.plan_evaluation(config(f"evaluation.benchmarks.law=[{exam}]")).splitlines()
    assert told[0].startswith("benchmarks: 2 model(s) × 1 = 2 measurements")
    assert told[-1] == told[-2].replace("base:", "tuned:"), "it is merged with its base"
    with pytest.raises(UserError, match=r"evaluation\.benchmarks: missing"):
        plans.plan_evaluation(config())


@pytest.mark.parametrize("file", sorted((ROOT / "jobs").glob("*.py")), ids=lambda file: file.stem)
def test_every_job_that_works_on_a_configuration_has_a_plan(file: Path) -> None:
    # these take seconds themselves, or no configuration
    if file.stem not in ("report", "preview", "soup"):
        assert "plan_" in file.read_text(encoding="utf-8")


def test_a_begun_run_of_the_microworld_is_compared_by_what_was_given(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(overrides=[f"storage={tmp_path / 'runs'}", "device=cpu"])
    finetune = config.run_folder / "finetune"
    (finetune / "checkpoints").mkdir(parents=True)
    (config.run_folder / "config.yaml").write_text(dump(config))
    (finetune / "inputs.json").write_text("{}")
    (finetune / "adjustments.jsonl").write_text('{"step": 0}\n')
    path = {"model": config.model.model_copy(update={"path": str(tiny_model)})}
    filled = config.model_copy(update=path)  # as with a tiny base model that is there
    monkeypatch.setattr(plans, "prepare", lambda *_, **__: (filled, True))
    monkeypatch.setattr(plans, "_stores", lambda *_: None)
    assert plans.plan_tuning(config).endswith("begun before: it goes on at its last checkpoint")
    other = load(overrides=["training.epochs=7", f"storage={tmp_path / 'runs'}", "device=cpu"])
    with pytest.raises(UserError, match=r"begun with other settings \(training\.epochs: "):
        plans.plan_tuning(other)


def test_a_study_is_described_and_checked_without_the_averages_that_it_has_yet_to_make(
    config: Any,
) -> None:
    average = "{mixture.start: trajectory, mixture.policy: constant, mixture.trajectory: '@moving'}"
    studied = config(
        "mixture.start=detected",
        "study.methods.moving={mixture.start: uniform}",
        f"study.methods.average={average}",
        "study.baseline=moving",
        "study.seeds=[0]",
    )
    check_study(studied)
    assert alone(studied.study.chosen["average"]) == {
        "mixture.start": "uniform",
        "mixture.policy": "constant",
    }, "nothing is left that a detection would be made for"
    assert "study: 2 methods × 1 seeds" in plan_study(studied)
    wrong = config(
        "study.methods.moving={mixture.start: uniform}",
        f"study.methods.average={average.replace('policy', 'polcy')}",
        "study.baseline=moving",
    )
    with pytest.raises(UserError, match=r"mixture\.polcy: unknown key"):
        check_study(wrong)


def test_a_plan_says_what_a_replay_adds() -> None:
    keep = {"replay": {"law": 0.2, "code": 0.0}, "replay_samples": 1500}
    (line,) = plans._replay(parse({"training": {"keep": keep}}))
    assert "the base model writes 1,500 texts first" in line and line.endswith("records of law")
    assert plans._replay(parse({})) == []
