"""Policies and starting shares by the names that a configuration has for them: what each is set by,
and what it needs. Settings, their help and their checks read these tables; nothing else lists them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from versatune_ray.mixture.baselines import (
    DoGE,
    DoReMi,
    DynamicLoading,
    ExponentialLoss,
    OnlineDataMixing,
    SkillIt,
)
from versatune_ray.mixture.policies import Balanced, Constant, Expansion, Policy, VersaTune
from versatune_ray.mixture.powerlaw import PowerLaw
from versatune_ray.mixture.probing import Aioli, Constrained
from versatune_ray.mixture.rivals import MSFT, DynamixSFT, Ideal, PiKE, RandB, Velocitune
from versatune_ray.mixture.schedule import Schedule


@dataclass(frozen=True)
class Rule:
    """A policy by name.

    Attributes:
        kind: its class, whose flags say what it needs.
        keys: settings of it that are keys of ``mixture``. options: those under ``mixture.options``;
            a rule has the one or the other.
        varied: keys that ``jobs/replay.py`` varies where no others are named.
        floor: whether it takes ``min_share`` itself; else ``Floored`` is laid under it.
        fixed: its shares never move, so that no floor can lift them.
        needs_targets: whether it takes the ``targets``, as indices.
    """

    kind: type[Policy]
    keys: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    varied: tuple[str, ...] = ()
    floor: bool = False
    fixed: bool = False
    needs_targets: bool = False

    @property
    def needs_reference(self) -> bool:
        return bool(getattr(self.kind, "needs_reference", False))

    @property
    def starts(self) -> bool:
        """Whether the shares before step 1 are its own, whatever ``mixture.start`` says."""
        return bool(getattr(self.kind, "starts", False))

    @property
    def multiplicative(self) -> bool:
        """Whether a share of 0 stays 0, but for a target or a floor."""
        return bool(getattr(self.kind, "multiplicative", False))


POLICIES: Mapping[str, Rule] = MappingProxyType(
    {
        "constant": Rule(Constant, fixed=True),
        "versatune": Rule(
            VersaTune, ("sigma", "min_share", "heed_overfitting"), varied=("sigma",), floor=True
        ),
        "balanced": Rule(Balanced, ("strength", "min_share"), floor=True),
        "expansion": Rule(
            Expansion,
            (
                "sigma",
                "delta",
                "epsilon",
                "max_share",
                "min_share",
                "guard",
                "mean_over",
                "remainder",
                "heed_overfitting",
            ),
            varied=("sigma", "delta", "epsilon"),
            floor=True,
            needs_targets=True,
        ),
        "schedule": Rule(Schedule, options=("waypoints", "between")),
        "exponential_loss": Rule(ExponentialLoss),
        "doremi": Rule(DoReMi, options=("eta", "smoothing")),
        "dynamic_loading": Rule(DynamicLoading, options=("eta", "smoothing")),
        "odm": Rule(OnlineDataMixing, options=("alpha", "warmup")),
        "skill_it": Rule(SkillIt, options=("skills", "eta", "window")),
        "doge": Rule(DoGE, options=("eta", "mu")),
        "powerlaw": Rule(PowerLaw, options=("strength", "passes", "prior")),
        "dynamix": Rule(DynamixSFT, options=("gamma", "alpha", "beta")),
        "velocitune": Rule(Velocitune),
        "pike": Rule(PiKE, options=("zeta1", "zeta2")),
        "rnb": Rule(RandB, options=("strength", "wanted")),
        "aioli": Rule(Aioli, options=("eta", "smoothing", "sweeps", "steady")),
        "ideal": Rule(Ideal, options=("largest", "rounds")),
        "msft": Rule(MSFT, options=("patience",)),
        "constrained": Rule(
            Constrained,
            options=("bound", "max_share", "smoothing", "sweeps", "steady"),
            needs_targets=True,
        ),
    }
)


@dataclass(frozen=True)
class Start:
    """A rule for the shares before step 1: what it is made from, beside the number of domains."""

    needs_detection: bool = False
    needs_sizes: bool = False
    needs_targets: bool = False
    needs_trajectory: bool = False
    needs_embeddings: bool = False


STARTS: Mapping[str, Start] = MappingProxyType(
    {
        "detected": Start(needs_detection=True),
        "uniform": Start(),
        "inverse": Start(needs_detection=True),
        "inverse_complement": Start(needs_detection=True),
        "proportional": Start(needs_sizes=True),
        "temperature": Start(needs_sizes=True),
        "specific": Start(needs_targets=True),
        "uniform_remainder": Start(needs_targets=True),
        "trajectory": Start(needs_trajectory=True),
        "chameleon": Start(needs_embeddings=True),
    }
)
