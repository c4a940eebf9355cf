"""What a detection would do and need, worked out without running anything: ``jobs/detect.py
--plan``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from versatune_ray.detection.answers import unjudged
from versatune_ray.detection.generate import Generator, generator
from versatune_ray.detection.judge_spec import JudgeSpec, judge_spec
from versatune_ray.detection.texts import Texts
from versatune_ray.domains.labelled import labelled_sources
from versatune_ray.errors import one_line
from versatune_ray.runs.parts import finished_ids
from versatune_ray.runtime.cluster import gpus_here
from versatune_ray.runtime.models import in_words
from versatune_ray.settings import Config, Engine, Subject

_RUNNING = 256  # sequences that vLLM runs at once on most GPUs, if its options do not say
_GIB = 2**30


def describe_detection(config: Config, subjects: Sequence[Subject]) -> str:
    """Models, sequences, tokens, replicas, memory per device, and what is cached, as text. Starts
    neither Ray nor an engine.
    """
    settings, cap = config.detection, config.detection.samples * config.detection.repeats
    gpu = gpus_here(config.device)
    spec = None if settings.judge.path is None else judge_spec(config, gpu=gpu)
    stop = (
        ""
        if settings.tolerance is None
        else f", fewer once every interval is within ± {100 * settings.tolerance:g} %"
    )
    lines = [
        f"{len(subjects)} model(s), up to {cap:,} sequences each{stop}, of at most "
        f"{settings.generation.max_tokens:,} tokens",
        "",
    ]
    has_labelled = all(labelled_sources(domain)[1] for domain in config.domains.values())
    to_read = labelled = settings.judge.records * len(config.domains) if has_labelled else 0
    failed = 0
    for subject in subjects:
        name = subject.name or Path(subject.path).name
        try:
            source = generator(name, subject.path, subject.engine, config, gpu=gpu)
            lines += _model(name, subject, source, config, cap)
            to_read += _unasked(spec, source, config, cap)
        except Exception as error:  # the same that would set this model aside in the job
            lines.append(f"{name}: cannot be detected: {one_line(error)}")
            failed += 1
    lines += ["", *_judge(spec, config, to_read, labelled)]
    if failed:
        lines.append(f"{failed} of {len(subjects)} models cannot be detected")
    return "\n".join(lines)


def _model(name: str, subject: Subject, source: Generator, config: Config, cap: int) -> list[str]:
    cached = int((finished_ids(source.folder) < cap).sum())
    left, longest = cap - cached, source.generation.max_tokens
    return [
        f"{name}: {left:,} sequences to generate, {cached:,} cached; at most {left * longest:,} "
        f"tokens, from {source.start_is}",
        f"  {_placed(subject.engine)}; {memory(subject.path, subject.engine, longest + 1, config)}",
    ]


def _judge(spec: JudgeSpec | None, config: Config, texts: int, labelled: int) -> list[str]:
    if spec is None:
        return [f"judge: the tiny one, trained first; up to {texts:,} texts"]
    shown, written = (
        spec.settings.max_text_tokens,
        1 if spec.settings.answer == "probabilities" else spec.settings.answer_tokens,
    )
    requests = texts * spec.requests
    lines = [
        f"judge {spec.model} ({spec.settings.kind}): up to {texts:,} texts, {labelled:,} of "
        f"them labelled; {requests:,} requests "
        f"of up to {shown:,} tokens of text and {written} written"
    ]
    if spec.settings.kind == "http":
        return [
            *lines,
            f"  {spec.settings.http.url}, {spec.settings.http.concurrency} requests at a time",
        ]
    return [
        *lines,
        f"  {_placed(spec.settings.engine)}; "
        f"{memory(spec.model, spec.settings.engine, shown + 512, config)}",
    ]


def _unasked(spec: JudgeSpec | None, source: Generator, config: Config, cap: int) -> int:
    """Sequences that the judge has yet to read, those that have yet to be written among them."""
    if spec is None:
        return cap
    left = cap - int((finished_ids(source.folder) < cap).sum())
    texts = Texts(
        source.folder,
        cap,
        spec.folder(config.cache_folder, source.folder.name),
        config.detection.exclude_degenerate,
    )
    return left + sum(len(file.ids) for file in unjudged(spec, 0, texts)) // spec.requests


def _placed(engine: Engine) -> str:
    replicas = (
        f"1 to {engine.replicas}"
        if isinstance(engine.replicas, int)
        else " to ".join(map(str, engine.replicas))
    )
    needs = [
        f"{engine.cpus} CPU(s)",
        *(f"{amount:g} {name}" for name, amount in engine.resources.items()),
    ]
    kind = f" ({engine.accelerator})" if engine.accelerator else ""
    return (
        f"{replicas if replicas != '1 to 1' else '1'} replica(s) of {engine.tensor_parallel} "
        f"device(s){kind}, each with {', '.join(needs)}"
    )


def memory(path: str, engine: Engine, tokens: int, config: Config) -> str:
    """Weights, and key-value cache of a full batch of ``tokens`` each, per device; vLLM takes more
    cache if there is room.

    Parameters are counted on a model without storage; key-value heads are split over the devices
    like the weights.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    shape = AutoConfig.from_pretrained(path, trust_remote_code=config.model.trust_remote_code)
    classifies = any("SequenceClassification" in name for name in shape.architectures or ())
    with torch.device("meta"):
        model = (
            AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
        ).from_config(shape, trust_remote_code=config.model.trust_remote_code)
    dtype = (
        getattr(shape, "dtype", None) or torch.bfloat16
        if gpus_here(config.device)
        else torch.float32
    )
    size = torch.empty(0, dtype=dtype).element_size()
    heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    width = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    at_once = int(engine.options.get("max_num_seqs", _RUNNING))
    weights = model.num_parameters() * size / engine.tensor_parallel / _GIB
    cache = (
        2
        * shape.num_hidden_layers
        * heads
        * width
        * size
        * tokens
        * at_once
        / engine.tensor_parallel
        / _GIB
    )
    return (
        f"{in_words(model.num_parameters())} parameters: {weights:.1f} GiB of weights and "
        f"{cache:.1f} GiB of cache for {at_once} sequences, per device"
    )
