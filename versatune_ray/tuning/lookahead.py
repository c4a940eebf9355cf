"""Recorded losses through other policies and settings, in milliseconds: to discard hopeless ones
before a sweep.

The losses were made under the shares of the recorded run. What is shown is what another setting
would have answered to them, not what training under its answers would have measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from versatune_ray.errors import UserError
from versatune_ray.mixture import (
    POLICIES,
    STARTS,
    Budget,
    Start,
    needs,
    replay,
)
from versatune_ray.pipeline import Run
from versatune_ray.runs.comparisons import RECORDED, Replay
from versatune_ray.runs.folder import say
from versatune_ray.settings import Config, mixing, semantics
from versatune_ray.settings.given import in_epochs
from versatune_ray.settings.idle import idle
from versatune_ray.settings.loading import parse, with_keys
from versatune_ray.training.feedback import trained_in
from versatune_ray.tuning.plan import leaves

CAVEAT = (
    "These losses were recorded under the shares of the run itself; training under other shares "
    "would have measured others."
)


# what a policy may go by, and where it is in the log
_LOGGED = {
    "gradients": "gradient_products",
    "variances": "gradient_variances",
    "held_out_gradient": "held_out_products",
}


# what answers to recorded losses; other keys act while a model trains
_ANSWERS = {"preset", "start", "policy", "options", "min_share", "targets", "target_share"} | {
    key for rule in POLICIES.values() for key in rule.keys
}


def check_replay(config: Config) -> None:
    """Whether every setting of ``replay.settings`` can answer otherwise than the run did.

    Raises:
        UserError: a key is unknown, or changes nothing there.
    """
    for name, changes in config.replay.settings.items():
        nothing = idle(parse(with_keys(config.model_dump(mode="json"), changes)))
        for key in leaves(changes):
            section, _, rest = key.partition(".")
            if section != "mixture" or rest.partition(".")[0] not in _ANSWERS:
                raise UserError(
                    f"replay.settings.{name}: {key} changes no answer to recorded losses; a sweep "
                    f"over it does"
                )
            if key in nothing:
                raise UserError(f"replay.settings.{name}: {key} does nothing there: {nothing[key]}")


def look_ahead(run: Run) -> Path:
    """Answers of every setting to the recorded losses, in ``replay/trajectories.json``; returns the
    report, which draws them.
    """
    config = run.given_config
    log = Path(config.replay.losses or run.folder.path / "finetune" / "adjustments.jsonl")
    lines = _read(log)
    names = list(lines[0]["loss"])
    reference = _reference(config, log, names)
    trajectories = {RECORDED: np.array([[line["share"][name] for name in names] for line in lines])}
    for name, changes in settings_of(config).items():
        trajectories[name] = _answers(
            parse(with_keys(config.model_dump(mode="json"), changes)),
            lines,
            names,
            reference,
            trajectories[RECORDED][0],
        )
    content = {name: shares.tolist() for name, shares in trajectories.items()}
    run.folder.write(
        Replay.FILE,
        {"steps": [line["step"] for line in lines], "domains": names, "shares": content},
    )
    width = max(map(len, trajectories))
    for name, shares in trajectories.items():
        ends = ", ".join(
            f"{domain} {100 * share:.1f} %" for domain, share in zip(names, shares[-1], strict=True)
        )
        say("replay", f"{name:<{width}}  {ends}")
    say("replay", CAVEAT)
    return run.report()


def settings_of(config: Config) -> dict[str, dict[str, Any]]:
    """``replay.settings``; or each setting of the configured policy halved and doubled."""
    if config.replay.settings:
        return config.replay.settings
    found = {}
    for key in POLICIES[config.mixture.policy].varied if config.mixture.policy in POLICIES else ():
        for factor in (0.5, 2):
            value = getattr(config.mixture, key) * factor
            found[f"{key}={value:g}"] = {f"mixture.{key}": value}
    if not found:
        raise UserError(
            f"replay.settings: missing; policy {config.mixture.policy} has no settings to vary"
        )
    return found


def _answers(
    config: Config,
    lines: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    reference: Mapping[str, float] | None,
    start: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Shares [t + 1, k] of one setting, from its own start where that needs no more data than the
    log has, else from the recorded one.
    """
    if semantics.needs_reference(config) and reference is None:
        raise UserError(
            "replay.losses: no reference losses beside the log; name them with "
            "reference.losses=FILE"
        )
    chosen = config.mixture.start
    in_passes = isinstance(chosen, dict) and in_epochs(chosen)
    if (isinstance(chosen, dict) and not in_passes) or (
        isinstance(chosen, str) and STARTS[chosen] in (Start(), Start(needs_targets=True))
    ):
        start = mixing.starting_shares(config, names, None, [1] * len(names))
    losses = np.array([[line["loss"][name] for name in names] for line in lines])
    ceiling = None if reference is None else [reference[name] for name in names]
    policy, told = mixing.policy(config, names), lines[1:]
    budget = _budget(told, names)
    if needs(policy, "budget") and budget is None:
        raise UserError(
            f"replay.losses: the log does not say what was drawn of every domain, by which "
            f"policy {config.mixture.policy} goes; take that of a newer run"
        )
    if budget is not None and (in_passes or mixing.rule_of(config.mixture.policy).starts):
        start = mixing.starting_shares(config, names, None, budget.sizes.astype(int).tolist())
    products = None
    for what, key in _LOGGED.items():
        if needs(policy, what) and any(key not in line for line in told):
            raise UserError(
                f"replay.losses: the log has no {key}, by which policy "
                f"{config.mixture.policy} goes; take that of a run with it"
            )
    if all("gradient_products" in line for line in told):
        products = [
            [[line["gradient_products"][one][other] for other in names] for one in names]
            for line in told
        ]
    variances, held_out = (
        [[line[key][name] for name in names] for line in told]
        if all(key in line for line in told)
        else None
        for key in ("gradient_variances", "held_out_products")
    )
    try:
        return replay(
            policy,
            start,
            losses[1:],
            ceiling,
            losses[0],
            names,
            [line["step"] for line in told],
            products,
            _passes(told, names),
            budget,
            variances,
            held_out,
            [trained_in(line, names, 0.0) for line in lines],
        )
    except ValueError as error:
        raise UserError(f"replay: {error}") from None


def _budget(lines: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Budget | None:
    """Of the run that was recorded, as far as it went; None where a line does not say it."""
    passes = _passes(lines, names)
    if passes is None or not all(passes[-1]) or any("drawn" not in line for line in lines):
        return None
    drawn = np.array([[line["drawn"][name] for name in names] for line in lines])
    steps = lines[-1]["step"]
    return Budget(
        steps, round(drawn[-1].sum() / steps), np.rint(drawn[-1] / np.array(passes[-1])), drawn
    )


def _passes(lines: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[list[float]] | None:
    """[t, k] as the run was told, or None where a line does not have them all."""
    told = [line.get("passes") or {} for line in lines]
    known = all(one.get(name) is not None for one in told for name in names)
    return [[one[name] for name in names] for one in told] if known else None


def _read(log: Path) -> list[dict[str, Any]]:
    if not log.is_file():
        raise UserError(f"replay.losses: {log}: no such file; name the adjustments.jsonl of a run")
    try:
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        if len(lines) < 2 or any(line["loss"].keys() != lines[0]["share"].keys() for line in lines):
            raise ValueError("it needs two adjustments or more, each with a loss for every domain")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"replay.losses: {log}: no log of a run: {error}") from None
    if any(line.get("stage") is not None for line in lines):
        raise UserError(
            f"replay.losses: {log}: a run of stages, each with shares of its own; replay takes the "
            f"log of a run without them"
        )
    return lines


def _reference(config: Config, log: Path, names: Sequence[str]) -> dict[str, float] | None:
    """Reference losses: those configured, or those of the recorded run.

    Raises:
        UserError: the file is none of losses, or lacks a domain.
    """
    file = Path(config.reference.losses or log.parents[1] / "reference" / "losses.json")
    if not file.is_file():
        return None
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))["domains"]
        return {name: float(stored[name]["loss"]) for name in names}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"reference.losses: {file}: no loss for each of {', '.join(names)}: {error!r}"
        ) from None
