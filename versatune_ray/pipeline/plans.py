"""What a run would do and take, as text, before anything is started: ``--plan`` of the jobs."""

from __future__ import annotations

from versatune_ray.detection.plan import describe_detection
from versatune_ray.domains import load_domains
from versatune_ray.microworld.prepare import prepare
from versatune_ray.settings import Config, Subject, semantics


def plan_detection(config: Config) -> str:
    """What ``Run.detect_all`` would do, as text; nothing is started or made."""
    if config.detection.distribution is not None:
        return f"nothing to detect: the distribution is given ({config.detection.distribution})"
    config, _ = prepare(
        config, not config.detection.models and config.model.path is None, True, make=False
    )
    if config.detection.models:
        return describe_detection(config, config.detection.models)
    if config.model.path is None:
        asked = f"{config.detection.samples * config.detection.repeats:,} sequences"
        return (
            f"a tiny base model is trained first (minutes on a CPU); then it writes up to {asked}, "
            f"which a judge reads"
        )
    return describe_detection(
        config, [Subject(path=config.model.path, engine=config.detection.engine)]
    )


def plan_finetuning(config: Config) -> str:
    """What ``Run.finetune`` would do and take, as text. Records of some megabytes are tokenised for
    it, which the run would do as well.
    """
    from versatune_ray.domains.tokenizing import build_stores, small_enough_for_a_look
    from versatune_ray.training.budget import outlook

    config, _ = prepare(config, config.model.path is None, False, make=False)
    if config.model.path is None:
        return (
            "a tiny base model is trained first (minutes on a CPU); its fine-tuning takes minutes "
            "and less than a GiB"
        )
    domains = None
    if small_enough_for_a_look(config.domains):
        paths = build_stores(
            config, config.domains, config.model.path, config.cache_folder, distributed=False
        )
        domains = load_domains(paths, config.data)
    return outlook(config, config.model.path, domains)


def plan_pipeline(config: Config) -> str:
    """What all steps up to the tuned model would do and take."""
    detected = [plan_detection(config), ""] if semantics.needs_detection(config) else []
    return "\n".join([*detected, plan_finetuning(config)])
