"""Which domain the next samples come from: metrics, policies, starting shares and the sampler, in
NumPy (and once SciPy) alone.

Read in this order: ``metrics`` (Eq. 2, Eq. 3) → ``feedback`` → ``policies`` (Algorithms 2 and 3) →
``sampler``, ``tokens``. ``shares`` holds starting points; ``baselines``, ``rivals`` and ``probing``
the rules of others, ``schedule`` a plan, ``powerlaw`` one of ours that looks ahead; ``registry``
the names of all of them. ``replay`` runs a policy over recorded losses, ``diagnostics`` reads signs
of trouble off a log. Every array is in the order of the configured domain list. Equations and
algorithms are those of VersaTune (arXiv 2411.11266); a choice the paper leaves open is named as
ours where it is made.
"""

from versatune_ray.mixture.baselines import (
    DoGE,
    DoReMi,
    DynamicLoading,
    ExponentialLoss,
    OnlineDataMixing,
    SkillIt,
)
from versatune_ray.mixture.diagnostics import new_warnings
from versatune_ray.mixture.feedback import Budget, Feedback, LossSums, comparable
from versatune_ray.mixture.metrics import forgetting_degree, learnable_potential
from versatune_ray.mixture.policies import (
    Balanced,
    Constant,
    Expansion,
    Floored,
    GuardState,
    Policy,
    VersaTune,
    apply_policy,
    needs,
)
from versatune_ray.mixture.powerlaw import PowerLaw
from versatune_ray.mixture.probing import Aioli, Constrained, Probing
from versatune_ray.mixture.registry import POLICIES, STARTS, Rule, Start
from versatune_ray.mixture.replay import mean_shares, replay
from versatune_ray.mixture.rivals import MSFT, DynamixSFT, Ideal, PiKE, RandB, Velocitune
from versatune_ray.mixture.sampler import DomainSampler
from versatune_ray.mixture.schedule import Schedule
from versatune_ray.mixture.shard_order import ShardOrder
from versatune_ray.mixture.shares import (
    chameleon,
    check_shares,
    inverse,
    proportional,
    specific,
    temperature,
    uniform,
    uniform_remainder,
)
from versatune_ray.mixture.streams import fixed_subset
from versatune_ray.mixture.tokens import TokenSampler

__all__ = [
    "MSFT",
    "POLICIES",
    "STARTS",
    "Aioli",
    "Balanced",
    "Budget",
    "Constant",
    "Constrained",
    "DoGE",
    "DoReMi",
    "DomainSampler",
    "DynamicLoading",
    "DynamixSFT",
    "Expansion",
    "ExponentialLoss",
    "Feedback",
    "Floored",
    "GuardState",
    "Ideal",
    "LossSums",
    "OnlineDataMixing",
    "PiKE",
    "Policy",
    "PowerLaw",
    "Probing",
    "RandB",
    "Rule",
    "Schedule",
    "ShardOrder",
    "SkillIt",
    "Start",
    "TokenSampler",
    "Velocitune",
    "VersaTune",
    "apply_policy",
    "chameleon",
    "check_shares",
    "comparable",
    "fixed_subset",
    "forgetting_degree",
    "inverse",
    "learnable_potential",
    "mean_shares",
    "needs",
    "new_warnings",
    "proportional",
    "replay",
    "specific",
    "temperature",
    "uniform",
    "uniform_remainder",
]
