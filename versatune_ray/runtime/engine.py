"""One vLLM stage of ``ray.data.llm``: the only place that knows how an engine is placed on CPUs or
GPUs.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from versatune_ray.runs.storage import fetch
from versatune_ray.settings import Engine
from versatune_ray.settings.location import is_mirrored

Row = dict[str, Any]


# Engine arguments that change how fast a model runs and not what it says.
_SPEED = {
    "gpu_memory_utilization", "kv_cache_memory_bytes", "max_num_seqs", "max_num_batched_tokens",
    "max_model_len", "block_size",
    "enforce_eager", "enable_prefix_caching", "enable_chunked_prefill", "disable_log_stats",
    "distributed_executor_backend",
}  # fmt: skip


def decisive(options: dict[str, Any]) -> dict[str, Any]:
    """The engine arguments that outputs depend on: what a cache is keyed by."""
    return {name: value for name, value in options.items() if name not in _SPEED}


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

    options: dict[str, Any] = {
        "tensor_parallel_size": settings.tensor_parallel,
        "trust_remote_code": trust_remote_code,
    }
    if settings.tensor_parallel > 1:
        # One actor that holds all its devices, on one node: Ray's executor would leave a placement
        # group behind until the job ends.
        options["distributed_executor_backend"] = "mp"
    bundle: dict[str, float] = {"CPU": settings.cpus} | settings.resources
    environment = {}
    if gpu:
        bundle["GPU"] = 1
    else:
        # Eager and float32: compiling pays off only after more tokens than a CPU makes, and float32
        # runs on every CPU. vLLM's sampler compiles even so, for about 20 s of both cores at every
        # start, unless dynamo is off.
        options |= {"enforce_eager": True, "dtype": "float32"}
        environment = {
            "VLLM_CPU_KVCACHE_SPACE": str(settings.kv_cache_gib),
            "TORCHDYNAMO_DISABLE": "1",
        }
    config = vLLMEngineProcessorConfig(
        model_source=model,
        engine_kwargs=options | settings.options,
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
