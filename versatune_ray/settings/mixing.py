"""What the keys of ``mixture`` mean together: the policy, and the shares before step 1."""

from __future__ import annotations

import importlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from versatune_ray import mixture as mix
from versatune_ray.errors import UserError
from versatune_ray.settings import Config, given, nearest
from versatune_ray.settings.location import here


def policy(config: Config, names: Sequence[str]) -> mix.Policy:
    """The configured policy.

    Raises:
        UserError: an unknown target, floors that do not fit together, a class that is not there or
            is no policy, or options that it does not take.
    """
    settings = config.mixture
    if settings.min_share * len(names) > 1:
        raise UserError(
            f"mixture.min_share: {settings.min_share} for each of {len(names)} domains is more "
            f"than 1; at most {1 / len(names):.4g}"
        )
    rule = rule_of(settings.policy)
    known = settings.policy in mix.POLICIES
    if known and settings.options and not rule.options:
        raise UserError(
            f"mixture.options: policy={settings.policy} takes its settings from the other keys of "
            f"mixture; found {settings.options}, which mixture.options=null takes back"
        )
    for key in settings.options if known else ():
        if key not in rule.options:
            raise UserError(
                f"mixture.options.{key}: {settings.policy} takes no such setting; "
                f"{nearest(key, rule.options)} (mixture.options=null takes all back)"
            )
    values = {key: getattr(settings, key) for key in rule.keys} | settings.options
    if rule.needs_targets:
        values["targets"] = targets(config, names)
    if "waypoints" in values:
        values["waypoints"] = _waypoints(values["waypoints"], names)
    try:
        found = rule.kind(**values)
    except (TypeError, ValueError) as error:
        where = "mixture.options" if settings.options else "mixture"
        raise UserError(f"{where}: {settings.policy}: {error}") from None
    if (
        isinstance(found, mix.SkillIt)
        and found.skills is not None
        and len(found.skills) != len(names)
    ):
        raise UserError(
            f"mixture.options.skills: {len(found.skills)} rows for the {len(names)} domains "
            f"{', '.join(names)}"
        )
    if settings.unit == "tokens" and getattr(found, "counts_records", False):
        raise _of_records(f"mixture.policy={settings.policy}")
    if isinstance(found, mix.Probing) and settings.min_share > found.smoothing / len(names):
        raise UserError(
            f"mixture.min_share: {settings.min_share:g} is more than the probes of "
            f"{settings.policy} leave to a domain, {found.smoothing / len(names):.4g}; lower it, "
            f"or raise mixture.options.smoothing"
        )
    if settings.min_share and not rule.floor and not rule.fixed:
        return mix.Floored(found, settings.min_share)
    return found


def check_adjustments(config: Config, chosen: mix.Policy, k: int, steps: int, every: int) -> None:
    """Whether there are as many adjustments as a policy has to have.

    Raises:
        UserError: the run ends before one that tries mixtures out has an answer; or the waypoints
            of a plan do not rise, lie past the end, or fall between adjustments.
    """
    if isinstance(chosen, mix.Floored):
        chosen = chosen.policy
    if isinstance(chosen, mix.Schedule):
        try:
            lost = chosen.unheeded(steps, every)
        except ValueError as error:
            raise UserError(f"mixture.options.{error}") from None
        if lost is not None:
            raise UserError(
                f"mixture.options.waypoints.{lost}: shares change every {every} of {steps} steps, "
                f"and none of these changes lies near enough to it; "
                f"{'lower training.adjust_every' if every > 1 else 'train for more steps'}"
            )
    if isinstance(chosen, mix.Probing) and math.ceil(steps / every) < chosen.intervals(k):
        raise UserError(
            f"mixture.policy={config.mixture.policy}: to try {k} domains it needs "
            f"{chosen.intervals(k)} intervals between adjustments, and {steps} steps have "
            f"{math.ceil(steps / every)}; lower training.adjust_every (here {every})"
        )


def _of_records(what: str) -> UserError:
    """That shares of tokens cannot follow numbers of records."""
    return UserError(
        f"mixture.unit=tokens: {what} goes by numbers of records, and its shares would be taken "
        f"for parts of the tokens; write mixture.unit=samples"
    )


def rule_of(name: str) -> mix.Rule:
    """A policy of ``mixture.POLICIES``, or a class of the user's.

    Raises:
        UserError: a class that is not there, or is no policy.
    """
    if name in mix.POLICIES:
        return mix.POLICIES[name]
    module, _, attribute = name.partition(":")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"mixture.policy: {name}: {error}; is it on the Python path of every machine "
            f"(installed, or in --working-dir)?"
        ) from None
    methods = ["update", "guard_state", *(["start"] if getattr(kind, "starts", False) else [])]
    missing = [method for method in methods if not callable(getattr(kind, method, None))]
    if missing or not isinstance(kind, type):
        raise UserError(
            f"mixture.policy: {name} is no policy: it has no "
            f"{' and no '.join(missing) or 'class'}; see mixture.Policy"
        )
    return mix.Rule(kind)


def targets(config: Config, names: Sequence[str]) -> tuple[int, ...]:
    """Indices of ``mixture.targets`` in domain order."""
    if not config.mixture.targets:
        raise UserError("mixture.targets: missing; name at least one domain to expand")
    unknown = set(config.mixture.targets) - set(names)
    if unknown:
        raise UserError(
            f"mixture.targets: unknown domain {min(unknown)!r}; valid: {', '.join(names)}"
        )
    return tuple(names.index(name) for name in config.mixture.targets)


def starting_shares(
    config: Config, names: Sequence[str], detected: Sequence[float] | None, sizes: Sequence[int]
) -> NDArray[np.float64]:
    """P(0), shape [k]: ``mixture.start`` applied.

    Raises:
        UserError: the shares given are not one per domain, or not a distribution.
    """
    start, k = config.mixture.start, len(names)
    if rule_of(config.mixture.policy).starts:
        try:
            planned = policy(config, names).start(sizes)  # type: ignore[attr-defined]
            return mix.check_shares(planned, k, names)
        except ValueError as error:
            raise UserError(f"mixture.policy={config.mixture.policy}: {error}") from None
    if config.mixture.unit == "tokens" and (
        start in ("proportional", "temperature")
        or (isinstance(start, dict) and given.in_epochs(start))
    ):
        given_as = f"={start}" if isinstance(start, str) else " in epochs"
        raise _of_records(f"mixture.start{given_as}")
    if isinstance(start, dict):
        return _given(start, names, sizes, "mixture.start")
    try:
        if start == "uniform":
            return mix.uniform(k)
        if start == "proportional":
            return mix.proportional(sizes)
        if start == "temperature":
            return mix.temperature(mix.proportional(sizes), config.mixture.tau)
        if start == "trajectory":
            return _trajectory(config, names)
        if start == "chameleon":
            return _chameleon(config, names)
        if start == "specific":
            return mix.specific(k, targets(config, names))
        if start == "uniform_remainder":
            return mix.uniform_remainder(k, targets(config, names), config.mixture.target_share)
        assert detected is not None, "detected shares are needed"
        shares = np.asarray(detected, dtype=np.float64)
        return (
            shares
            if start == "detected"
            else mix.inverse(shares, "reciprocal" if start == "inverse" else "complement")
        )
    except ValueError as error:
        raise UserError(f"mixture.start={start}: {error}") from None


def _chameleon(config: Config, names: Sequence[str]) -> NDArray[np.float64]:
    file = Path(config.mixture.embeddings or "")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return mix.chameleon([found[name] for name in names], names=names)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"mixture.embeddings: {file}: no embedding of each of {', '.join(names)}: {error!r}"
        ) from None


def _given(
    start: Mapping[str, Any], names: Sequence[str], sizes: Sequence[int], key: str
) -> NDArray[np.float64]:
    found = given.leaves(start)
    if set(found) != set(names):
        raise UserError(
            f"{key}: needs one share for each of {', '.join(names)}; found {', '.join(found)}"
        )
    try:
        parts = given.parts(start, dict(zip(names, sizes, strict=True)))
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(f"{key}: {error}") from None
    return np.array([parts[name] for name in names]) / sum(parts.values())


def asked_samples(config: Config, names: Sequence[str], sizes: Sequence[int]) -> float | None:
    """Samples of a run whose length is what its start says in epochs; None of any other.

    Raises:
        UserError: there are none.
    """
    if config.training.samples_per_epoch is not None or rule_of(config.mixture.policy).starts:
        return None
    try:
        return given.samples(config.mixture.start, dict(zip(names, sizes, strict=True)))
    except ValueError as error:
        raise UserError(f"mixture.start: {error}") from None


def _waypoints(value: Any, names: Sequence[str]) -> list[tuple[int | float, Any]]:
    """``mixture.options.waypoints`` of policy=schedule, with shares in the order of ``names``."""
    key = "mixture.options.waypoints"
    if not isinstance(value, list) or not value:
        raise UserError(f"{key}: a list of {{at: 50%, shares: {{law: 0.4, …}}}}; found {value!r}")
    found: list[tuple[int | float, Any]] = []
    for number, one in enumerate(value):
        where = f"{key}.{number}"
        if not isinstance(one, Mapping) or set(one) != {"at", "shares"}:
            raise UserError(f"{where}: write {{at: 50%, shares: {{law: 0.4, …}}}}; found {one!r}")
        at, shares = one["at"], one["shares"]
        if isinstance(at, str) and re.fullmatch(r"\d+(\.\d+)?%", at):
            at = float(at[:-1]) / 100
        if isinstance(at, bool) or not isinstance(at, int | float):
            raise UserError(f"{where}.at: a step as 100, or a part as 50%; found {at!r}")
        if isinstance(shares, Mapping):
            try:
                checked = TypeAdapter(given.Given).validate_python(shares)
            except ValidationError as error:
                reason = error.errors()[0]["msg"].removeprefix("Value error, ")
                raise UserError(f"{where}.shares: {reason}") from None
            if any(given.epochs(part) is not None for part in checked.values()):
                raise UserError(f"{where}.shares: shares are needed here, not epochs")
            shares = tuple(_given(checked, names, [1] * len(names), f"{where}.shares").tolist())
        elif shares not in ("uniform", "proportional"):
            raise UserError(
                f"{where}.shares: write {{law: 0.4, …}}, uniform or proportional; found {shares!r}"
            )
        found.append((at, shares))
    return found


def _unit_of(saved: Path) -> str | None:
    """What the shares of a run count, by its own configuration; None where that is not there."""
    try:
        found = yaml.safe_load(saved.read_text(encoding="utf-8"))
        return str(found["mixture"].get("unit", "samples"))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError):
        return None


def _trajectory(config: Config, names: Sequence[str]) -> NDArray[np.float64]:
    """The average mixture of the run that ``mixture.trajectory`` names."""
    file = here(Path(config.mixture.trajectory or ""))  # a trial's was logged by another machine
    if not file.is_file():
        raise UserError(
            f"mixture.trajectory: {file}: no such file; name the adjustments.jsonl of a finished "
            f"run"
        )
    unit = _unit_of(file.parent.parent / "config.yaml")
    if unit not in (None, config.mixture.unit):
        raise UserError(
            f"mixture.trajectory: {file}: its shares count {unit}, and those here "
            f"{config.mixture.unit}; set mixture.unit={unit}, or name another run's"
        )
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        shares = [[line["share"][name] for name in names] for line in lines]
        return mix.mean_shares([line["step"] for line in lines], shares, names)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"mixture.trajectory: {file}: no log of a run over {', '.join(names)}: {error}"
        ) from None
