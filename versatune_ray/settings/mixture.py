"""Keys of the mixture: where shares start, how they follow the losses, and the presets."""

from __future__ import annotations

import re
from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from versatune_ray.mixture import POLICIES, STARTS
from versatune_ray.settings.common import OneOf, Paths, WithPreset, setting
from versatune_ray.settings.given import Given

# balanced is what won in our studies (README). Its shares are derived in ``mixture.Balanced``. Why
# a length correction of one half: where the mean loss over domains is what counts, each domain's
# own mean should weigh the same in a step's loss; but the fewer tokens a mean is made of, the
# noisier its gradient is. For domains with gradients of like norm G that point apart, and noise s²
# per token, the step that descends most on average weighs a mean of T_j tokens by T_j / (T_j +
# s²/G²): as T_j (the mean over tokens) where noise rules, as 1 (the mean over domains) where it
# does not. s²/G² is the gradient noise scale (McCandlish et al. 2018, arXiv 1812.06162); one half
# stands between the two without measuring it.
_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "start": "detected",
        "policy": "versatune",
        "length_correction": 0.0,
        "heed_overfitting": False,
        "max_passes": None,
    },
    "balanced": {
        "start": "uniform",
        "policy": "balanced",
        "strength": 0.9,
        "length_correction": 0.5,
        "max_passes": "auto",
    },
}


_CLASS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")

_OPTIONS = "; ".join(
    f"{name}: {', '.join(rule.options)}" for name, rule in POLICIES.items() if rule.options
)
StartName = Annotated[str, BeforeValidator(OneOf(STARTS))]
PolicyName = Annotated[
    str, BeforeValidator(OneOf(POLICIES, _CLASS, "; or a class as package.module:Class"))
]


class Mixture(WithPreset):
    """Starting shares and policy."""

    PRESETS = _PRESETS
    preset: Literal["balanced", "paper"] | None = setting(
        None,
        "balanced: what won in our studies; paper: its settings to the letter; for every key not "
        "set here",
    )
    start: StartName | Given = setting(
        "detected",
        "shares before step 1: a rule, or {law: 0.4, code: 0.6}, {law: 3 epochs, code: 1 epoch}, "
        "or with groups {legal: {share: 0.4, members: [law, contracts]}, code: 0.6}",
    )
    policy: PolicyName = setting(
        "versatune",
        "how shares follow the losses: a rule, or a class of your own as package.module:Class",
    )
    options: dict[str, Any] = setting(
        dict,
        f"settings of such a class, or of a rule ({_OPTIONS}); none: its defaults",
    )
    unit: Literal["samples", "tokens"] = setting(
        "samples",
        "what shares count: samples, as in the paper, or tokens, whatever the lengths of records",
    )
    tokens: Literal["response", "all"] = setting(
        "response", "unit=tokens: those that train, or prompts as well"
    )
    strength: float = setting(
        0.9, "λ, how far the shares of policy=balanced leave equal ones", ge=0, le=1
    )
    tau: float = setting(
        3.3,
        "start=temperature: shares go as records^(1/τ); 1 is proportional, large is uniform",
        gt=0,
    )
    trajectory: str | None = setting(
        None, "start=trajectory: an adjustments.jsonl; the start is its average mixture", path=True
    )
    embeddings: str | None = setting(
        None,
        "start=chameleon: a JSON file, domain name → its mean embedding, a list of numbers; "
        "python -m versatune_ray.training.embeddings makes one",
        path=True,
    )
    sigma: float = setting(
        1.0, "σ, strength of the learnable potential (unpublished in the paper)", ge=0
    )
    delta: float = setting(
        0.05, "δ, raise of the targets per adjustment (expansion; unpublished)", "share", gt=0, lt=1
    )
    epsilon: float = setting(
        1.0, "ε, forgetting tolerated per unit of target potential (expansion; unpublished)", ge=0
    )
    targets: Paths = setting(
        list, "domains to expand, or to start from with specific / uniform_remainder"
    )
    target_share: float = setting(
        0.5, "starting share of the targets with uniform_remainder", "share", gt=0, lt=1
    )
    guard: bool = setting(
        True, "expansion: raise only while the others forget little (Algorithm 3)"
    )
    mean_over: Literal["k", "k-1"] = setting(
        "k", "expansion: the guard's mean over k (as printed) or over the k-1 others"
    )
    remainder: Literal["potential", "uniform"] = setting(
        "potential",
        "expansion: how the others divide the rest: by their potential (Algorithm 3), or equally "
        "(a baseline)",
    )
    max_share: float = setting(
        0.95, "expansion: ceiling of the targets' share", "share", gt=0, le=1
    )
    length_correction: float = setting(
        0.0,
        "loss of a batch. 0: mean over its response tokens, so that domains of long answers "
        "outweigh the others; 1: mean of each domain, "
        "weighted by its share of the samples; between: geometric means of both weights",
        ge=0,
        le=1,
    )
    min_share: float = setting(
        0.0, "floor under every share that the policy sets; constant sets none", "share", ge=0, lt=1
    )
    heed_overfitting: bool = setting(
        False,
        "no potential for a domain whose loss is above its own lowest after two passes over its "
        "records; else a scarce domain that overfits is given ever more",
    )
    feedback: Literal["held_out", "train"] = setting(
        "held_out",
        "loss that drives the shares; `train`: that of the training batches, with nothing measured "
        "but before and after",
    )
    gradient_records: int = setting(
        16,
        "policies that go by gradients (doge, dynamix, pike, rnb, ideal): training records of each "
        "domain whose gradient is taken at each adjustment",
        "records",
        ge=1,
    )
    smoothing: float = setting(
        0.5,
        "feedback=train: weight of earlier losses in each domain's moving average; 0: the last "
        "interval's alone. 0.5 leaves a third of "
        "the variance that comes from few samples, and lags by one adjustment",
        ge=0,
        lt=1,
    )
    warn_passes: float = setting(
        4,
        "warn once a domain is repeated more often; up to four passes are nearly as good as new "
        "data",
        "passes",
        gt=0,
        results=False,
    )
    max_passes: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["auto"] | None = (
        setting(
            None,
            "most passes over a domain, spread over the run; what it would have had goes to the "
            "others; auto: four, or twice the run's samples "
            "over all records if that is more; none: no cap",
            "passes",
        )
    )

    @field_validator("targets")
    @classmethod
    def _each_once(cls, value: list[str]) -> list[str]:
        twice = [name for name, times in Counter(value).items() if times > 1]
        if twice:
            raise ValueError(f"{', '.join(twice)} is there more than once; name each domain once")
        return value
