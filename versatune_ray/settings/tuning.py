"""Keys of the jobs that compare many fine-tunings: sweep, study, replay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from versatune_ray.settings.common import MOST_SEED, Section, Shares, nearest, setting

Changes = dict[str, dict[str, Any]]
BY_LOSS = ("target_gain", "forgetting", "gain")
BY_ACCURACY = ("target_accuracy", "other_accuracy", "accuracy")
OBJECTIVES = (*BY_LOSS, *BY_ACCURACY)  # what a trial achieved, by name (``tuning.objectives``)


class Sweep(Section):
    """Ray Tune over settings of the mixture, or any other key."""

    space: dict[str, Any] = setting(
        lambda: {"mixture.epsilon": [0.25, 0.5, 1.0, 2.0], "mixture.delta": [0.02, 0.05, 0.1, 0.2]},
        "dotted key → list of values, or {min, max} with `log: true` for a logarithmic range",
    )
    search: Literal["grid", "random", "optuna", "optuna_pareto"] = setting(
        "grid",
        "every combination; random ones; Optuna on the weighted objective; or Optuna on each "
        "objective by itself",
    )
    trials: int = setting(16, "trials of random and Optuna search", ge=1)
    objective: Shares = setting(
        lambda: {"target_gain": 1.0, "forgetting": -1.0},
        f"weights of {', '.join(OBJECTIVES)} in the score that is raised; accuracy: of a domain's "
        f"benchmarks, else its questions",
    )
    prune: bool = setting(
        False, "stop trials early whose score is low for the samples that they have seen (ASHA)"
    )
    grace: int = setting(
        3,
        "prune: adjustments before a trial may be stopped, without the one before step 1; each "
        "stands for the samples between two of the first trial",
        "adjustments",
        ge=1,
    )
    concurrency: int | None = setting(
        None, "trials at the same time; none: as many as the cluster has room for", ge=1
    )

    @field_validator("objective")
    @classmethod
    def _known(cls, value: Shares) -> Shares:
        unknown = sorted(value.keys() - set(OBJECTIVES))
        if unknown or not any(value.values()):
            raise ValueError(
                f"weights of {', '.join(OBJECTIVES)}, not all 0; found "
                f"{', '.join(unknown) or value}"
            )
        return value

    @field_validator("space", mode="before")
    @classmethod
    def _dotted(cls, value: Any) -> Any:
        """``space.mixture.sigma=[1, 2]`` on a command line comes as a branch."""
        return dict(_leaves(value)) if isinstance(value, Mapping) else value

    @field_validator("space")
    @classmethod
    def _readable(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key, values in value.items():
            if isinstance(values, Mapping):
                low, high = values.get("min"), values.get("max")
                numbers = isinstance(low, int | float) and isinstance(high, int | float)
                numbers = numbers and isinstance(values.get("log", False), bool)
                if values.keys() - {"min", "max", "log"} or not numbers or not low < high:  # type: ignore[operator]
                    raise ValueError(
                        f"{key}: write a list of values, or {{min: 0.1, max: 2}}, with log: true "
                        f"if wanted; found {dict(values)}"
                    )
                if values.get("log") and not low > 0:  # type: ignore[operator]
                    raise ValueError(f"{key}: a logarithmic range needs min above 0; found {low}")
            elif not isinstance(values, list) or not values:
                raise ValueError(
                    f"{key}: write a list of values, or {{min: 0.1, max: 2}}; found {values!r}"
                )
        return value


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and not value.keys() & {"min", "max"}:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


class Study(Section):
    """Methods × seeds."""

    methods: Changes = setting(
        dict,
        'name → dotted keys that the method changes; mixture.trajectory: "@NAME" is the log of '
        "another method with the same seed",
    )
    only: list[str] = setting(list, "methods to run, of those; none: all")
    seeds: list[Annotated[int, Field(ge=0, le=MOST_SEED)]] = setting(
        lambda: [0, 1, 2, 3, 4], "seeds that every method is run with"
    )
    baseline: str = setting("uniform", "method that the others are compared with, seed by seed")
    concurrency: int | None = setting(
        None, "fine-tunings at the same time; none: as many as the cluster has room for", ge=1
    )

    @property
    def chosen(self) -> Changes:
        """The methods to run, in order."""
        return {name: self.methods[name] for name in self.only} if self.only else self.methods

    @model_validator(mode="after")
    def _known(self) -> Study:
        for name in self.only:
            if name not in self.methods:
                raise ValueError(
                    f"only: {name!r} is no method; {nearest(name, list(self.methods))}"
                )
        return self


class Replay(Section):
    """Recorded losses through other settings."""

    losses: str | None = setting(None, "an adjustments.jsonl; none: this run's own", path=True)
    settings: Changes = setting(
        dict, "name → dotted keys, such as mixture.sigma; none: σ, δ and ε each halved and doubled"
    )
