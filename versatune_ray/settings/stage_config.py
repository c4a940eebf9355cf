"""``stages`` of the configuration, each as the configuration of a plain run over its own
sources.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from versatune_ray.errors import UserError
from versatune_ray.settings import Config, Stage, nearest
from versatune_ray.settings.given import leaves, only


@dataclass(frozen=True)
class StageConfig:
    """A stage, before any data is read; without ``stage`` the whole of a configuration that has
    none.

    config: of a plain run over ``sources`` (in domain order). rehearsed: those of them that only
    ``earlier`` stages name.
    """

    config: Config
    sources: tuple[str, ...]
    rehearsed: frozenset[str] = frozenset()
    stage: Stage | None = None
    earlier: tuple[StageConfig, ...] = ()

    @property
    def name(self) -> str | None:
        return None if self.stage is None else self.stage.name

    @property
    def fresh(self) -> bool:
        """Whether optimizer and schedule begin anew."""
        return self.stage is None or self.stage.fresh

    def records(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Training records that it uses of each source, for sources of these ``sizes``."""
        if self.stage is None:
            return {name: sizes[name] for name in self.sources}
        used = [part.records(sizes) for part in self.earlier] if self.rehearsed else []

        def count(stage: Stage, name: str) -> int:
            rehearsed = name in self.rehearsed
            return stage.count(
                name, max(one.get(name, 0) for one in used) if rehearsed else sizes[name], rehearsed
            )

        return {name: count(self.stage, name) for name in self.sources}

    def check_start(self, shares: Mapping[str, float]) -> None:
        """
        Args:
            shares: the stage starts with, of each source that has records.

        Raises:
            UserError: they stay as they are, and all is for what is rehearsed.
        """
        own = [name for name in shares if name not in self.rehearsed]
        mixture = self.config.mixture
        if own and mixture.policy == "constant" and not any(shares[name] for name in own):
            raise UserError(
                f"start={mixture.start} gives nothing to {', '.join(own)}, which this stage is "
                f"for; write another, such as start: proportional"
            )

    def over(self, sources: Sequence[str]) -> Config:
        """The configuration over some of the sources: the others' starting shares are left out."""
        start = self.config.mixture.start
        if not isinstance(start, dict):
            return self.config
        mixture = self.config.mixture.model_copy(update={"start": only(start, sources)})
        return self.config.model_copy(update={"mixture": mixture})


def stage_configs(config: Config, names: Sequence[str]) -> list[StageConfig]:
    """The stages in order; of a configuration without any, the whole as one.

    Raises:
        UserError: an unknown domain, or one that a stage does not train on; two stages of one name;
            or one that cannot go on with the optimizer before it.
    """
    found: list[StageConfig] = []
    for stage in config.stages:
        where = f"stages.{stage.name}"
        counted = (value for value in (stage.records, stage.fraction) if isinstance(value, Mapping))
        started = leaves(stage.start) if isinstance(stage.start, Mapping) else []
        for name in (*stage.sources, *started, *(name for value in counted for name in value)):
            if name not in names:
                raise UserError(f"{where}: unknown domain {name!r}; {nearest(name, names)}")
        own = set(stage.sources or names)
        earlier = (
            {name for part in found for name in part.sources} - own if stage.rehearses else set()
        )
        sources = tuple(name for name in names if name in own | earlier)
        for key in ("records", "fraction", "start"):
            value = getattr(stage, key)
            listed = leaves if key == "start" else list
            for name in listed(value) if isinstance(value, Mapping) else ():
                if name not in sources:
                    raise UserError(
                        f"{where}.{key}: this stage does not train on {name!r}, but on "
                        f"{', '.join(sources)}"
                    )
        part = StageConfig(_plain(config, stage), sources, frozenset(earlier), stage, tuple(found))
        if any(other.name == stage.name for other in found):
            raise UserError(f"stages: two are called {stage.name!r}; choose another name")
        if not stage.fresh:
            if not found:
                raise UserError(
                    f"{where}.fresh: the first stage has no optimizer to go on with; leave it out"
                )
            if part.config.training.learning_rate != found[-1].config.training.learning_rate:
                raise UserError(
                    f"{where}.learning_rate: {part.config.training.learning_rate} differs from "
                    f"that of {found[-1].name!r}, "
                    "whose schedule it goes on with; leave it out, or write fresh: true"
                )
        found.append(part)
    return found or [StageConfig(config, tuple(names))]


def _plain(config: Config, stage: Stage) -> Config:
    """What ``stage`` sets, in the places of a plain run."""
    mixture = {
        key: value
        for key in ("start", "policy", "options")
        if (value := getattr(stage, key)) is not None
    }
    if stage.options is None and stage.policy not in (None, config.mixture.policy):
        mixture["options"] = {}
    keys = ("epochs", "learning_rate", "batch_size")
    training = {key: value for key in keys if (value := getattr(stage, key)) is not None} | {
        "samples_per_epoch": stage.samples_per_epoch
    }
    return config.model_copy(
        update={
            "stages": [],
            "mixture": config.mixture.model_copy(update=mixture),
            "training": config.training.model_copy(update=training),
        }
    )
