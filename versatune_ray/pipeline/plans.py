"""What a run would do and take, as text, before anything is started: ``--plan`` of the jobs.

Records of some megabytes are tokenised for it, in this process, which the run would do as well.
"""

from __future__ import annotations

from collections.abc import Mapping

from versatune_ray.domains import DomainData, DomainPaths, load_domains
from versatune_ray.domains.contamination import mark
from versatune_ray.microworld.prepare import prepare
from versatune_ray.runs.folder import check_unchanged
from versatune_ray.settings import Config, Subject, semantics

_TINY = "a tiny base model is trained first (minutes on a CPU)"


def plan_detection(config: Config) -> str:
    """What ``Run.detect_all`` would do, as text; nothing is started or made."""
    from versatune_ray.detection.plan import describe_detection

    if config.detection.distribution is not None:
        return f"nothing to detect: the distribution is given ({config.detection.distribution})"
    config, _ = prepare(
        config, not config.detection.models and config.model.path is None, True, make=False
    )
    if config.detection.models:
        return describe_detection(config, config.detection.models)
    if config.model.path is None:
        asked = f"{config.detection.samples * config.detection.repeats:,} sequences"
        return f"{_TINY}; then it writes up to {asked}, which a judge reads"
    return describe_detection(
        config, [Subject(path=config.model.path, engine=config.detection.engine)]
    )


def plan_reference(config: Config) -> str:
    """What ``Run.measure_references`` would do: which losses are cached, and what the others
    take.
    """
    from versatune_ray.runs.cache import have, key_of
    from versatune_ray.runtime.cluster import gpus_here
    from versatune_ray.runtime.models import model_fingerprint
    from versatune_ray.training.budget import alone
    from versatune_ray.training.inputs import loss_unit, tokenizer_of
    from versatune_ray.training.reference import reference_keys

    settings = config.reference
    if settings.losses is not None:
        return f"no reference losses to measure: they are given ({settings.losses})"
    config, _ = prepare(config, config.model.path is None, False, make=False)
    if config.model.path is None:
        return f"{_TINY}; then one of its kind is tuned on each domain, in less than a GiB"
    model = settings.model or config.model.path
    unit = loss_unit(config, config.model.path)
    reads = config.model.path if unit == "nats/token" else model
    written = any(config.training.keep.replay.values())
    paths = None if written else _stores(config, reads)
    lines = [
        f"reference losses of {model}: up to {settings.epochs} epochs on each domain alone, "
        f"{settings.workers} domain(s) at a time"
    ]
    if paths is None:
        why = _UNWRITTEN if written else _UNREAD
        return "\n".join([*lines, f"  {why}", *alone(config, model, {})])
    if config.data.contaminated == "remove":
        paths, _ = mark(config, paths, tokenizer_of(config, reads), config.cache_folder)
    keys = reference_keys(
        model_fingerprint(model, config.cache_folder), paths, config, unit, gpus_here(config.device)
    )
    left: dict[str, tuple[DomainData, int]] = {}
    for name, data in load_domains(paths, config.data).items():
        size = min(len(data.train), settings.max_records or len(data.train))
        there = have(config.cache_folder / "reference" / key_of(keys[name]))
        lines.append(f"  {name}: {'cached' if there else f'{size:,} records'}")
        if not there:
            left[name] = (data, size * settings.epochs)
    return "\n".join([*lines, *(alone(config, model, left) if left else [])])


def plan_finetuning(config: Config) -> str:
    """What ``Run.finetune`` would do and take, with what it needs before."""
    return "\n\n".join([*_before(config), plan_tuning(config)])


def plan_tuning(config: Config) -> str:
    """The fine-tuning by itself."""
    from versatune_ray.training.budget import outlook

    begun = _begun(config)  # a run keeps what was given, and not what is filled in
    config, _ = prepare(config, config.model.path is None, False, make=False)
    if config.model.path is None:
        return f"{_TINY}; its fine-tuning takes minutes and less than a GiB"
    paths = _stores(config, config.model.path)
    domains = None if paths is None else load_domains(paths, config.data)
    return "\n".join([outlook(config, config.model.path, domains), *_replay(config), *begun])


def _replay(config: Config) -> list[str]:
    """What ``training.keep.replay`` adds."""
    keep = config.training.keep
    if not (names := [name for name, part in keep.replay.items() if part]):
        return []
    return [
        f"  training.keep.replay: the base model writes {keep.replay_samples:,} texts first, "
        f"unless it has; they are not counted above among the records of {', '.join(names)}"
    ]


def plan_pipeline(config: Config) -> str:
    """What all steps up to the page would do and take."""
    asked = bool(config.evaluation.benchmarks)
    questions = any(domain.questions for domain in config.domains.values()) or not config.domains
    parts = [plan_finetuning(config)]
    if questions:
        parts.append("questions: all of domains.NAME.questions to the base and the tuned model")
    if asked:
        parts.append(plan_evaluation(config))
    return "\n\n".join(parts)


def plan_evaluation(config: Config) -> str:
    """What ``Run.measure_all`` would measure, and the memory that it takes."""
    from versatune_ray.detection.plan import memory
    from versatune_ray.evaluation.benchmarks import asked
    from versatune_ray.runtime.models import adapter_base

    config, _ = prepare(config, config.model.path is None, False, make=False)
    listed, settings = asked(config, config.cache_folder), config.evaluation
    tuned = config.run_folder / "finetune" / "model"
    models = {"base": config.model.path or ""}
    if (tuned / "config.json").is_file() or adapter_base(tuned) is not None:
        models["tuned"] = str(tuned)
    models |= settings.models
    count, most = len(listed) * len(models), settings.limit
    lines = [
        f"benchmarks: {len(models)} model(s) × {len(listed)} = {count} measurements"
        + (f", of at most {most:,} questions each" if most else "")
        + "; those of the cache are not done again",
        *(f"  {one.domain}: {one.name}" for one in listed),
    ]
    for name, path in models.items():
        whole = adapter_base(path) or path  # an adapter is measured merged with its base
        told = memory(whole, settings.engine, settings.max_tokens, config) if path else _TINY
        lines.append(f"  {name}: {told}")
    return "\n".join(lines)


def plan_base(config: Config) -> str:
    """What ``Run.make_base`` would train."""
    base = config.base
    wanted = {"base": ("tiny base model", base.rows)}
    if base.judge_rows and config.detection.judge.path is None:
        wanted["judge"] = ("tiny judge", base.judge_rows)
    found, _ = prepare(config, True, "judge" in wanted, make=False)
    there = {"base": found.model.path, "judge": found.detection.judge.path}
    lines = []
    for key, (what, rows) in wanted.items():
        steps = f"{rows:,} rows, {-(-rows // base.batch_size):,} steps of {base.batch_size}"
        lines.append(f"{what}: {f'cached ({there[key]})' if there[key] else steps}")
    return "\n".join([*lines, "minutes on a CPU and less than a GiB each, side by side"])


_UNWRITTEN = "what is cached shows once the base has written what training.keep.replay asks for"
_UNREAD = "records are not read yet: they are counted once a run has read them"


def _before(config: Config) -> list[str]:
    detect = [plan_detection(config)] if semantics.needs_detection(config) else []
    return [*detect, *([plan_reference(config)] if semantics.needs_reference(config) else [])]


def _begun(config: Config) -> list[str]:
    """What is there of the fine-tuning itself.

    Raises:
        UserError: it was begun with other settings.
    """
    check_unchanged(config)
    folder = config.run_folder / "finetune"
    if (folder / "done").is_file():
        return ["  done before: nothing of it is done again"]
    log = folder / "adjustments.jsonl"
    if log.is_file() and (folder / "checkpoints").is_dir():
        return ["  begun before: it goes on at its last checkpoint"]
    return []


def _stores(config: Config, tokenizer: str) -> Mapping[str, DomainPaths] | None:
    """Token stores by domain; None where making them would take long."""
    from versatune_ray.domains.tokenizing import build_stores, small_enough_for_a_look

    if not small_enough_for_a_look(config.domains):
        return None
    paths: Mapping[str, DomainPaths] = build_stores(
        config, config.domains, tokenizer, config.cache_folder, distributed=False
    )
    return paths
