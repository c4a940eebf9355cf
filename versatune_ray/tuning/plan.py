"""What all trials of a job share, and what is known of one by its name: its configuration and its
outcome.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from versatune_ray.domains.choices import Choices
from versatune_ray.domains.records import Question
from versatune_ray.errors import UserError
from versatune_ray.pipeline import Run
from versatune_ray.pipeline.inputs import Stores
from versatune_ray.runs.cache import key_of
from versatune_ray.runs.storage import bring
from versatune_ray.settings import Config, semantics
from versatune_ray.settings.loading import parse, with_keys
from versatune_ray.settings.location import shown
from versatune_ray.settings.tuning import BY_ACCURACY
from versatune_ray.tuning.objectives import score

_FREE_TREE = ("sweep", "study", "cofitune", "replay")  # what a trial does not depend on
# What is made once for all trials: a change of it would be heeded by none, or by a half of a trial.
_SHARED = {
    "model": "base model",
    "base": "base model",
    "microworld": "base model and records",
    "domains": "records",
    "data": "records",
    "training.keep.replay_samples": "records",
    "detection": "detection",
    "reference": "reference losses",
    "group": "records",
    "storage": "folder",
    "run": "folder",
} | dict.fromkeys(_FREE_TREE, "search")
# but for what every trial reads by itself
_OWN = re.compile(
    r"data\.(max_train|max_validation|validation_fraction|shards_at_once)(\..*)?"
    r"|domains\..+\.order|detection\.distribution|reference\.losses"
)


@dataclass(frozen=True)
class Plan:
    """What all trials of a job share.

    base: the configuration that trials change, with model and artefacts filled in. stores: its
    token stores; replayed: those of trials that replay otherwise what the base wrote, by
    ``_replay_of``. questions: as they were read.
    targets: domains that ``target_gain`` is of. weights: of the objectives in ``score``, by which
    trials are compared, where it is not 0. marks: samples from one comparison of running trials
    to the next (see ``pruning``); None: they are not compared before their end. choices: of each
    domain's benchmarks, where trials are measured on them. benchmarks: what stands for those by
    which trials are scored.
    """

    base: Config
    stores: Stores = field(default_factory=dict)
    replayed: Mapping[str, Stores] = field(default_factory=dict)
    questions: Mapping[str, Sequence[Question]] = field(default_factory=dict)
    targets: tuple[str, ...] = ()
    weights: Mapping[str, float] = field(default_factory=lambda: {"gain": 1.0})
    marks: int | None = None
    choices: Mapping[str, Sequence[Sequence[Choices]]] = field(default_factory=dict)
    benchmarks: tuple[Mapping[str, Any], ...] = ()

    def config(self, name: str, changes: Mapping[str, Any]) -> Config:
        """The configuration of one trial: ``changes`` are dotted keys.

        Raises:
            UserError: a key is unknown, or of what all trials share; or a value is out of range.
        """
        tree = self.base.model_dump(mode="json", exclude=set(_FREE_TREE))
        config = parse(with_keys(tree, {**changes, "run": f"{self.base.run}/trials/{name}"}))
        for key in leaves(changes):
            for shared, what in _SHARED.items():
                if f"{key}.".startswith(f"{shared}.") and not _OWN.fullmatch(key):
                    raise UserError(
                        f"{key}: all trials share the same {what}, so none would heed it; give "
                        f"such runs names of their own with run=…, and compare them by "
                        f"jobs/report.py"
                    )
        return config

    def stores_of(self, config: Config) -> Stores:
        """The token stores of a trial."""
        return self.replayed.get(_replay_of(config), self.stores)

    @property
    def trials(self) -> Path:
        return self.base.run_folder / "trials"

    def outcome(self, name: str) -> dict[str, Any] | None:
        """What a finished trial left, on whichever machine it ran, or None.

        Raises:
            UserError: it was not measured by what this job weighs.
        """
        file = self.trials / name / "outcome.json"
        if not bring(file):
            return None
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        # the weights may be others than then
        found["objectives"] = self.scored(found["objectives"])
        if missing := [
            aim
            for aim in self.weights
            if aim not in found["objectives"] and found["pruned_at"] is None
        ]:
            raise UserError(
                f"{shown(file)}: {missing[0]} was not measured in this trial; choose another name "
                f"with run=…"
            )
        return found

    @property
    def asked(self) -> str:
        """Stands for all that a trained model is asked."""
        return key_of(
            {"questions": self.questions, "choices": self.choices, "benchmarks": self.benchmarks}
        )

    def is_done(self, name: str) -> bool:
        """Whether a trial need not be run: it is finished, and was asked what is asked now (else
        its model is, without another training); or it was stopped early in a search that still
        stops trials.
        """
        outcome = self.outcome(name)
        if outcome is None or outcome["pruned_at"] is not None:
            return outcome is not None and self.marks is not None
        # versions before did not say
        return bool(outcome.get("asked", self.asked) == self.asked)

    def scored(self, objectives: Mapping[str, float]) -> dict[str, float]:
        """Objectives with their ``score``, or without one where a weighted one is not there
        (yet).
        """
        found = {name: value for name, value in objectives.items() if name != "score"}
        return found | (
            {"score": score(found, self.weights)} if self.weights.keys() <= found.keys() else {}
        )


def check_differ(members: Mapping[str, Config]) -> None:
    """
    Args:
        members: of a sweep or study, by what a person calls them.

    Raises:
        UserError: two of them come to the same settings, and would be the same run.
    """
    named: dict[str, str] = {}
    for name, config in members.items():
        other = named.setdefault(config.model_dump_json(exclude={"run"}), name)
        if other != name:
            raise UserError(f"{name}: the same settings as {other}; leave one of them out")


def leaves(changes: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Dotted keys of changes, which may be written as branches."""
    for name, value in changes.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}"


def with_artefacts(
    run: Run,
    configs: Mapping[str, Config],
    targets: Sequence[str],
    weights: Mapping[str, float],
) -> Plan:
    """The plan of a run's trials: what ``configs`` need of token stores, detection and reference
    losses, made once for all of them.

    So trials with other seeds share them as well: what differs between two seeds is the fine-tuning
    alone.

    Args:
        configs: by what a person calls them.

    Raises:
        UserError: one of them cannot run to its end with the records that there are.
    """
    from versatune_ray.evaluation.questions import load_questions

    evaluation = run.given_config.evaluation
    weights = {aim: weight for aim, weight in weights.items() if weight}
    scored = run.benchmarks_asked() if weights.keys() & set(BY_ACCURACY) else []
    detect = any(semantics.needs_detection(one) for one in configs.values())
    ready = run.prepare(judge=detect and run.given_config.detection.distribution is None)
    stores, questions = run.tokenize(), load_questions(ready)
    own = _replay_of(run.given_config)
    replayed = {
        replay: run.replayed(one.training.keep)
        for replay, one in {_replay_of(one): one for one in configs.values()}.items()
        if replay != own
    }
    for name, one in configs.items():
        try:
            run.check_stages(one, replayed.get(_replay_of(one), stores))
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
    tree = ready.model_dump(mode="json")
    if detect:
        run.detect()
        tree["detection"]["distribution"] = str(
            run.folder.path / "detection" / Path(run.model()).name / "distribution.json"
        )
    if any(semantics.needs_reference(one) for one in configs.values()):
        run.measure_references()
        tree["reference"]["losses"] = str(run.folder.path / "reference" / "losses.json")
    return Plan(
        parse(tree),
        stores,
        replayed,
        questions,
        tuple(targets),
        weights,
        benchmarks=tuple(
            {"one": one.identity, "shots": one.shots, "metric": one.metric}
            | {"limit": evaluation.limit, "chat": evaluation.chat}
            for one in scored
        ),
    )


def _replay_of(config: Config) -> str:
    """Stands for what a run replays of what the base wrote."""
    return key_of({name: part for name, part in config.training.keep.replay.items() if part})


def name_of(changes: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that stand for ``changes``."""
    return key_of(changes)[:8]
