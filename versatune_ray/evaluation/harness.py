"""Measure models on benchmarks with lm-evaluation-harness and vLLM, one Ray task per model and
group of benchmarks.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from versatune_ray.domains.chat import load_tokenizer
from versatune_ray.domains.template import read_template
from versatune_ray.errors import one_line
from versatune_ray.evaluation.benchmarks import Asked
from versatune_ray.evaluation.catalogue import task_manager
from versatune_ray.evaluation.scores import metric_of, standard_error
from versatune_ray.runs.cache import cached, have, key_of, set_aside, write_json
from versatune_ray.runs.storage import fetch
from versatune_ray.runtime.engine import cpu_environment, engine_key, engine_options, needs
from versatune_ray.runtime.models import model_fingerprint
from versatune_ray.runtime.progress import Bar
from versatune_ray.settings import Config, Engine

Row = dict[str, Any]
_RESULT = ("metric", "unit", "value", "standard_error", "n")
# requests handed to vLLM at once; with "auto" it would draw a bar, which fails where bars are
# switched off
_BATCH = 1024


def measure(
    models: Mapping[str, str], benchmarks: Sequence[Asked], config: Config, gpu: bool
) -> tuple[list[Row], dict[str, str], bool]:
    """Every model on every benchmark; results that are cached are not measured again.

    Args:
        models: name → folder or Hugging Face id.

    Returns:
        Rows as in ``evaluation/results.json``; why others are missing, by "model: benchmark";
        whether all was cached.
    """
    import ray

    keys = {
        (name, one.name): _key(one, path, config, gpu)
        for name, path in models.items()
        for one in benchmarks
    }
    folder = config.cache_folder / "benchmark-result"
    left: dict[str, list[Asked]] = {}
    wanted: set[str] = set()
    for name, one in ((name, one) for name in models for one in benchmarks):
        digest = key_of(keys[name, one.name])
        # the same weights under two names are measured once
        if digest not in wanted and _kept(folder / digest) is None:
            wanted.add(digest)
            left.setdefault(name, []).append(one)
    failed: dict[str, str] = {}
    if left:
        # once a process: an engine may live in the task's own, which then knows one model
        measure_some = ray.remote(max_calls=1)(_measure).options(
            **_resources(config.evaluation.engine, gpu), max_retries=1
        )
        running = {}
        for name, some in left.items():
            for part in _parts(some, len(left), config.evaluation.engine, gpu):
                task = measure_some.remote(
                    name,
                    models[name],
                    part,
                    {one.name: keys[name, one.name] for one in part},
                    config,
                    gpu,
                )
                running[task] = (name, part)
        waiting = list(running)
        while waiting:
            (done,), waiting = ray.wait(waiting)
            name, part = running[done]
            try:
                failed |= {
                    f"{name}: {benchmark}": reason for benchmark, reason in ray.get(done).items()
                }
            except Exception as error:
                failed |= {f"{name}: {one.name}": one_line(error) for one in part}
    rows = []
    for name in models:
        for one in benchmarks:
            found = _kept(folder / key_of(keys[name, one.name]))
            if found is not None:
                rows.append({"model": name, "domain": one.domain, "benchmark": one.name} | found)
    return rows, failed, not left


def _kept(entry: Path) -> Row | None:
    """A cached result; one that cannot be read is set aside, and measured again."""
    if not have(entry):
        return None
    try:
        found = json.loads((entry / "result.json").read_text(encoding="utf-8"))
        return {name: found[name] for name in _RESULT}
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        set_aside(entry, error)
        return None


def _parts(
    benchmarks: Sequence[Asked], models: int, engine: Engine, gpu: bool
) -> list[Sequence[Asked]]:
    """The benchmarks of one model, split where the cluster has room for more engines than there are
    models.

    Not without GPUs: there engines share the memory's bandwidth, and starting one takes longer than
    most benchmarks.
    """
    import ray

    gpus = ray.cluster_resources().get("GPU", 0)
    room = int(gpus // needs(engine, gpu)["GPU"]) if gpu else models
    parts = min(max(1, room // models), len(benchmarks))
    return [benchmarks[start::parts] for start in range(parts)]


def _key(one: Asked, path: str, config: Config, gpu: bool) -> dict[str, Any]:
    settings = config.evaluation
    return {
        "model": model_fingerprint(path, config.cache_folder),
        "benchmark": dict(one.identity),
        "shots": one.shots,
        "limit": settings.limit,
        "chat": settings.chat,
        "template": _template(config),
        "engine": engine_key(settings.engine, gpu),
        "template_kwargs": config.data.chat_template_kwargs if settings.chat else {},
        "seed": config.seed,
    }


def _template(config: Config) -> str | None:
    """The chat template that is put in the place of the model's own."""
    file = config.data.chat_template if config.evaluation.chat else None
    return None if file is None else read_template(file)


def _resources(engine: Engine, gpu: bool) -> dict[str, Any]:
    taken = needs(engine, gpu)
    options: dict[str, Any] = {"num_cpus": taken.pop("CPU"), "num_gpus": taken.pop("GPU", 0.0)}
    options |= {"resources": taken}
    options |= {"label_selector": engine.labels} if engine.labels else {}
    environment = {"LMEVAL_LOG_LEVEL": "ERROR", "TQDM_DISABLE": "1"}
    if gpu:
        options |= {"accelerator_type": engine.accelerator}
    else:
        environment |= cpu_environment(engine)
    return options | {"runtime_env": {"env_vars": environment}}


def _measure(
    name: str,
    model: str,
    benchmarks: Sequence[Asked],
    keys: Mapping[str, Any],
    config: Config,
    gpu: bool,
) -> dict[str, str]:
    """In a Ray task: one engine for all ``benchmarks``; each result is cached as it comes. Returns
    what failed, and why.
    """
    import torch

    settings = config.evaluation
    torch.set_num_threads(settings.engine.cpus)
    failed: dict[str, str] = {}
    with Bar(f"evaluation of {name}", len(benchmarks), "benchmark") as bar:
        bar.to(0, "starting the engine")
        options = engine_options(
            settings.engine,
            gpu,
            trust_remote_code=config.model.trust_remote_code,
            # as the keys have it, whatever the hub says by now
            revision=keys[benchmarks[0].name]["model"].partition("@")[2] or None,
        )
        language_model = _harness_on_vllm()(
            pretrained=fetch(model),
            seed=config.seed,
            batch_size=_BATCH,
            **options,
        )
        data = config.data
        if settings.chat and (data.chat_template is not None or data.chat_template_kwargs):
            tokenizer = load_tokenizer(
                model,
                data.chat_template,
                config.model.trust_remote_code,
                data.chat_template_kwargs,
            )
            language_model.hf_chat_template = tokenizer.chat_template
        manager = task_manager([one.spec for one in benchmarks if isinstance(one.spec, str)])
        for place, one in enumerate(benchmarks):
            bar.to(place, one.name)

            def work(folder: Path, one: Asked = one) -> None:
                write_json(folder / "result.json", score(language_model, one, config, manager))

            try:
                cached(config.cache_folder, "benchmark-result", keys[one.name], work)
            except Exception as error:  # the others are measured all the same
                failed[one.name] = one_line(error)
        bar.to(len(benchmarks))
    return failed


def _here(spec: str | dict[str, Any]) -> str | dict[str, Any]:
    """Own records: on this machine, if the storage has them."""
    if isinstance(spec, str):
        return spec
    file = Path(spec["dataset_kwargs"]["data_files"]["test"])
    return spec | {"dataset_kwargs": {"data_files": {"test": str(fetch(file.parent) / file.name)}}}


def _fitting(spec: str | dict[str, Any], context: int) -> str | dict[str, Any]:
    """Own records: an answer leaves half of the model's context to the question. The harness would
    cut all of the question away.
    """
    if isinstance(spec, str) or "generation_kwargs" not in spec:
        return spec
    limits = spec["generation_kwargs"]
    return spec | {
        "generation_kwargs": limits | {"max_gen_toks": min(limits["max_gen_toks"], context // 2)}
    }


def _harness_on_vllm() -> Any:
    """The harness's class for vLLM. It asks for the version of a package called vllm, and the CPU
    build is called otherwise.
    """
    from importlib import metadata

    import vllm

    by_name = metadata.version
    metadata.version = lambda distribution_name: (
        vllm.__version__ if distribution_name == "vllm" else by_name(distribution_name)
    )
    try:
        from lm_eval.models.vllm_causallms import VLLM
    finally:
        metadata.version = by_name
    return VLLM


def score(language_model: Any, one: Asked, config: Config, manager: Any) -> Row:
    """Metric, value, standard error and n of one benchmark, exactly as ``lm_eval.simple_evaluate``
    gives them.

    n is the number of questions asked, of all parts of a group.

    Raises:
        UserError: as ``metric_of``.
    """
    from lm_eval import simple_evaluate

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    settings = config.evaluation
    found = simple_evaluate(
        model=language_model,
        tasks=[_fitting(_here(one.spec), language_model.max_length)],
        num_fewshot=one.shots,
        limit=settings.limit,
        task_manager=manager,
        log_samples=False,
        apply_chat_template=settings.chat,
        confirm_run_unsafe_code=settings.run_code,
        random_seed=config.seed,
        numpy_random_seed=config.seed,
        torch_random_seed=config.seed,
        fewshot_random_seed=config.seed,
    )
    name = one.spec if isinstance(one.spec, str) else one.spec["task"]
    numbers = found.get("groups", {}).get(name) or found["results"].get(name) or {}
    directions = found.get("higher_is_better", {}).get(name) or {}
    metric = metric_of(numbers, directions, one.metric, one.name)
    title, _, filters = metric.partition(",")
    error = numbers.get(f"{title}_stderr,{filters}")
    asked = sum(part["effective"] for part in found["n-samples"].values())
    value = float(numbers[metric])
    if value in (0, 1):  # the harness's own error would be 0
        error = standard_error(value, asked)
    return {
        "metric": title,
        "unit": "share",
        "value": value,
        "standard_error": error if isinstance(error, float) else None,
        "n": asked,
    }
