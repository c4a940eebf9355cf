"""Keys that do nothing beside the others are told, and refused where trials would differ by them
alone; so are those of what all trials share.
"""

from __future__ import annotations

import re
from operator import attrgetter
from pathlib import Path

import pytest

from versatune_ray.errors import UserError
from versatune_ray.pipeline.checks import TUNING, tell_idle
from versatune_ray.settings import Config, semantics
from versatune_ray.settings.idle import told
from versatune_ray.settings.loading import load, parse
from versatune_ray.tuning.lookahead import _reference, check_replay
from versatune_ray.tuning.plan import Plan, leaves
from versatune_ray.tuning.study import check_study
from versatune_ray.tuning.sweep import check_sweep

ALL = ("mixture", "training", "stages", "detection", "group", "sweep", "cofitune")
OWN = ["model.path=m", "domains.law=a.jsonl", "domains.code=b.jsonl"]


def config(*overrides: str) -> Config:
    return load([], [*OWN, *overrides])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["mixture.preset=balanced"], []),
        (["mixture.preset=paper", "mixture.sigma=2"], []),
        (
            ["mixture.preset=balanced", "mixture.sigma=2", "mixture.targets=[law]"],
            [
                "mixture.sigma=2.0 does nothing here: policy=balanced does not go by it",
                "mixture.targets=['law'] does nothing here: neither the start nor policy=balanced "
                "favours a domain",
            ],
        ),
        (
            ["mixture.policy=constant", "mixture.min_share=0.1", "mixture.tau=2"],
            [
                "mixture.min_share=0.1 does nothing here: the shares of policy=constant never "
                "move, so no floor lifts them",
                "mixture.tau=2.0 does nothing here: start=temperature alone goes by it",
            ],
        ),
        (["mixture.start=temperature", "mixture.tau=2"], []),
        (["mixture.policy=expansion", "mixture.targets=[law]", "mixture.delta=0.1"], []),
        (
            ["mixture.policy=schedule", "mixture.start=uniform"],
            ["mixture.start=uniform does nothing here: policy=schedule has a start of its own"],
        ),
        (["mixture.policy=doge", "mixture.gradient_records=4"], []),
        (
            ["training.lora.alpha=64"],
            [
                "training.lora.alpha=64 does nothing here: there is no adapter without "
                "training.lora.rank"
            ],
        ),
        (["training.lora.alpha=64", "training.lora.rank=8"], []),
        (
            ["training.decay=0.5", "training.schedule=constant", "training.min_lr_ratio=0.1"],
            [
                "training.decay=0.5 does nothing here: schedule=constant falls otherwise; wsd "
                "alone has it",
                "training.min_lr_ratio=0.1 does nothing here: schedule=constant does not fall",
            ],
        ),
        (
            ["stages=[{name: a, rehearse: 1/4}]", "training.samples_per_epoch=9"],
            [
                "training.samples_per_epoch=9 does nothing here: stages have their own: "
                "stages.NAME.samples_per_epoch",
                "stages.a.rehearse does nothing here: no stage before it has other sources",
            ],
        ),
        (["stages=[{name: a, sources: law}, {name: b, sources: code, rehearse: 1/4}]"], []),
        (
            ["detection.judge.http.url=http://localhost:1/v1"],
            [
                "detection.judge.http.url=http://localhost:1/v1 does nothing here: "
                "judge.kind=vllm asks no endpoint"
            ],
        ),
        (
            ["sweep.trials=4"],
            [
                "sweep.trials=4 does nothing here: search=grid tries every combination; random "
                "and Optuna count"
            ],
        ),
        (
            ["group.sources=heap.jsonl", "group.confidence=0.5"],
            ["group.confidence=0.5 does nothing here: by=embedding asks no judge"],
        ),
    ],
)
def test_a_key_that_does_nothing_is_told(overrides: list[str], expected: list[str]) -> None:
    assert list(told(config(*overrides), ALL)) == expected


def test_a_job_tells_of_what_it_works_on(capsys: pytest.CaptureFixture[str]) -> None:
    found = config("mixture.preset=balanced", "mixture.sigma=2", "sweep.trials=4")
    tell_idle(found, TUNING, "finetune")
    assert capsys.readouterr().out.startswith("[settings] mixture.sigma=2.0 does nothing here: ")
    tell_idle(found, ("records",), "sweep")  # its trials may have other mixtures
    assert capsys.readouterr().out.startswith("[settings] sweep.trials=4 does nothing here: ")


def test_a_search_over_what_does_nothing_is_refused() -> None:
    # the default space is that of expansion
    pushed = ["mixture.preset=balanced", "mixture.targets=[law]"]
    with pytest.raises(UserError, match=r"space\.mixture\.epsilon: trials would not differ by it"):
        check_sweep(config(*pushed))
    check_sweep(config(*pushed, "mixture.policy=expansion"))
    some = "sweep.space={mixture.policy: [constant, versatune], mixture.sigma: [1, 2]}"
    check_sweep(config(some, "sweep.objective={gain: 1}"))


def test_a_method_that_sets_what_does_nothing_is_refused() -> None:
    method = "study.methods.uniform={mixture.start: uniform, mixture.policy: constant"
    check_study(config(method + "}"))
    check_study(config(method + ", mixture.sigma: 1}"))  # as it is anyway
    with pytest.raises(UserError, match=r"methods\.uniform: mixture\.sigma does nothing there"):
        check_study(config(method + ", mixture.sigma: 2}"))
    with pytest.raises(UserError, match=r"methods\.uniform: seed: study\.seeds has the seeds"):
        check_study(config(method + ", seed: 2}"))


@pytest.mark.parametrize(
    "key",
    [
        "data.max_length=64",
        "domains.law.train=c.jsonl",
        "model.path=other",
        "detection.samples=10",
        "reference.epochs=2",
        "training.keep.replay_samples=9",
        "base.rows=10",
        "storage=elsewhere",
        "sweep.trials=3",
    ],
)
def test_a_trial_cannot_change_what_all_trials_share(key: str) -> None:
    name, _, value = key.partition("=")
    given = ["domains.law.validation=v.jsonl", f"study.methods.uniform={{{name}: {value}}}"]
    with pytest.raises(UserError, match=f"^{re.escape(name)}.*: all trials share the same "):
        check_study(config(*given))


@pytest.mark.parametrize(
    "key",
    [
        "data.max_train={law: 3}",
        "domains.law.order=length",
        "detection.distribution=d.json",
        "reference.losses=l.json",
        "training.keep.kl=0.1",
        "training.keep.replay={law: 0.2}",
        "evaluation.limit=3",
    ],
)
def test_a_trial_changes_what_it_reads_itself(key: str) -> None:
    name, _, value = key.partition("=")
    given = f"study.methods.uniform={{{name}: {value}}}"
    found = config(given)
    check_study(found)
    assert Plan(found).config("a", found.study.methods["uniform"]) != found


@pytest.mark.parametrize(
    ("changes", "told_of"),
    [
        ("{mixture.sigma: 2}", None),
        ("{mixture: {preset: balanced, strength: 0.5}}", None),
        ("{mixture.policy: odm, mixture.options.alpha: 0.5}", None),
        ("{training.epochs: 2}", "training.epochs changes no answer to recorded losses"),
        ("{mixture.max_passes: 2}", "mixture.max_passes changes no answer"),
        ("{mixture.delta: 0.2}", "mixture.delta does nothing there: policy=versatune does not"),
    ],
)
def test_a_replay_of_what_changes_no_answer_is_refused(changes: str, told_of: str | None) -> None:
    found = config(f"replay.settings.a={changes}")
    if told_of is None:
        check_replay(found)
    else:
        with pytest.raises(UserError, match=f"^replay.settings.a: {re.escape(told_of)}"):
            check_replay(found)


@pytest.mark.parametrize("content", ["{", "[]", '{"domains": {"law": {"loss": 1}}}'])
def test_a_replay_names_the_file_that_has_no_losses(content: str, tmp_path: Path) -> None:
    file = tmp_path / "losses.json"
    file.write_text(content)
    with pytest.raises(UserError, match=r"reference\.losses: .*: no loss for each of law, code"):
        _reference(config(f"reference.losses={file}"), tmp_path, ["law", "code"])


def test_changes_may_be_branches() -> None:
    found = list(leaves({"a": {"b": 1, "c": {}}, "d.e": [{"f": 1}]}))
    assert found == ["a.b", "a.c", "d.e"]


@pytest.mark.parametrize(
    ("override", "told_of"),
    [
        ("seed=-1", "seed: -1 is not valid: it has to be at least 0 and at most 4294967295"),
        ("seed=4294967296", "seed: 4294967296 is not valid"),
        ("study.seeds=[-1]", "study.seeds.0: -1 is not valid"),
        ("storage=''", "storage: empty; name a folder"),
        ("training.exchange_timeout=1e300", "training.exchange_timeout: 1e+300 is not valid"),
        ("training.batch_size=10000000000", "training.batch_size: 10000000000 is not valid"),
        ("detection.engine.resources={x: -1}", "detection.engine.resources.x: -1 is not valid"),
        (
            "sweep.space.mixture.sigma={min: 1, max: 2, log: no}",
            "sweep.space.mixture.sigma: write a list of values, or {min: 0.1, max: 2}, with log: "
            "true if wanted",
        ),
        ("training.lora.targets=[]", "training.lora.targets: [] is not valid: list should have"),
        ("storage=~no-such-user/runs", "storage: '~no-such-user/runs': there is no user"),
        ("detection.samples=10000000000", "detection.samples: 10,000,000,000 × 5 repeats are"),
        ("stages=[{name: a, rehearse: '1e-999999999'}]", "stages.0.rehearse: "),
        ("stages=[{name: a, fraction: 1/0}]", "stages.0.fraction: "),
        ("study.only=[a]", "study.only: 'a' is no method"),
        ("data.max_train={lww: 1}", "data.max_train: unknown domain 'lww'; did you mean 'law'?"),
    ],
)
def test_what_no_run_can_use_is_refused(override: str, told_of: str) -> None:
    for own in ([], OWN):
        with pytest.raises(UserError, match=f"^{re.escape(told_of)}"):
            load([], [*own, override])


@pytest.mark.parametrize(
    ("key", "empty"),
    [
        ("mixture.options", {}),
        ("domains", {}),
        ("stages", []),
        ("data.chat_template_kwargs", {}),
        ("detection.models", []),
        ("study.only", []),
        ("mixture.targets", []),
    ],
)
def test_none_takes_back_what_an_earlier_source_says(key: str, empty: object) -> None:
    assert attrgetter(key)(load([], [f"{key}=null"])) == empty
    given = ["mixture.policy=odm", "mixture.options={alpha: 0.5}"]
    assert load([], [*given, "mixture.options=null"]).mixture.options == {}


def test_none_is_no_mixture_and_no_number() -> None:
    for key in ("mixture.start", "training.epochs", "cofitune.layers", "training.betas"):
        with pytest.raises(UserError, match=f"^{key}: "):
            load([], [f"{key}=null"])


def test_a_dotted_key_in_a_file_is_told_how_to_write_it() -> None:
    with pytest.raises(UserError, match=r"dots are .* write training: \{lora: \{rank: …\}\}$"):
        parse({"training.lora.rank": 16})
    with pytest.raises(UserError, match=r"^training\.lora\.rank: .* write lora: \{rank: …\}$"):
        parse({"training": {"lora.rank": 16}})
    with pytest.raises(UserError, match=r"training\.lora\.rnk: unknown key; did you mean"):
        parse({"training.lora.rnk": 16})


def test_fractions_are_taken_as_they_are_written() -> None:
    parts = [0, 1, 0.0625, "1/16", "1e-5", ".5", 1e-05]
    stages = [{"name": f"s{number}", "fraction": part} for number, part in enumerate(parts)]
    assert len(parse({"stages": stages}).stages) == len(parts)
    with pytest.raises(UserError, match="a fraction within 0 and 1"):
        parse({"stages": [{"name": "a", "fraction": -0.5}]})


def test_losses_that_are_not_measured_keep_no_checkpoint() -> None:
    best = config("training.keep_best=loss", "mixture.preset=balanced")
    semantics.check(best, ["law", "code"])
    blind = config("training.keep_best=loss", "mixture.feedback=train", "mixture.preset=balanced")
    with pytest.raises(UserError, match=r"keep_best: mixture\.feedback=train measures held-out"):
        semantics.check(blind, ["law", "code"])


@pytest.mark.parametrize("epochs", ["1e20", "1e308"])
def test_more_steps_than_a_run_can_have_are_refused(epochs: str) -> None:
    long = config(f"training.epochs={epochs}")
    with pytest.raises(UserError, match=r"training\.epochs: 1e.* make too many steps; lower it"):
        semantics.recipe(long, 1000, "nats/token")
