"""What has to be known of a model folder or Hugging Face id before it is loaded: which one it is,
and how much text it takes.
"""

from __future__ import annotations

import hashlib
import json
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from versatune_ray.errors import UserError
from versatune_ray.runs.cache import key_of, write_json
from versatune_ray.runs.storage import fetch
from versatune_ray.runtime.gguf import gguf_file
from versatune_ray.settings.location import is_mirrored

ADAPTER = "adapter_config.json"  # of peft
_SETTLED = 5_000_000_000  # nanoseconds since the last change
# .py: of a model with code of its own; .tiktoken: of a tokenizer
_CONTENT = (".json", ".safetensors", ".bin", ".model", ".txt", ".jinja", ".py", ".tiktoken")


def model_fingerprint(path: str, cache: Path | None = None) -> str:
    """Identity of a model by content: the files' bytes of a folder, or the commit of a Hugging Face
    id.

    Args:
        cache: remembers what the bytes of files of these paths, sizes and times of change were, so
            that another job need not read gigabytes.

    Raises:
        UserError: neither a folder with a config.json nor a reachable id.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"{path}: no config.json in this folder; is it a Hugging Face model?")
        files = [
            file for file in sorted(folder.rglob("*")) if file.is_file() and file.suffix in _CONTENT
        ]
        return _digest(
            tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files), cache
        )
    if not _is_id(path):
        raise UserError(
            f"{path}: no such model folder, and no Hugging Face id of the form owner/name"
        )
    return f"{path}@{commit(path)}"


def adapter_base(path: str | Path) -> str | None:
    """The model that a folder's adapter was made for, where it holds an adapter alone."""
    file = Path(path).expanduser() / ADAPTER
    if file.with_name("config.json").is_file() or not file.is_file():
        return None
    return str(json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"])


def _is_id(path: str) -> bool:
    return not path.startswith(("/", ".", "~")) and path.count("/") == 1


def commit(path: str) -> str | None:
    """The commit of a Hugging Face id, found once per process, at which everything of it is loaded:
    weights, tokenizer and configuration; None for a folder.

    Raises:
        UserError: the hub gives no such model, and there is no copy of it here.
    """
    return None if Path(path).expanduser().is_dir() or not _is_id(path) else _commit(path)


@lru_cache(maxsize=64)
def _commit(path: str) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        # The snapshot's folder is named by its commit; the weights come later, on the node that
        # serves them.
        return Path(snapshot_download(path, allow_patterns=["*.json"])).name
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{path}: no such folder, and the Hugging Face hub gave no such model: "
            f"{' '.join(str(error).split())}"
        ) from None


def find_model(key: str, path: str) -> None:
    """Whether a model is where ``key`` says, without reading its weights.

    Raises:
        UserError: as ``model_fingerprint``, with the key.
    """
    if is_mirrored(path):
        return  # comes from the storage when it is needed
    try:
        folder = Path(path).expanduser()
        if gguf_file(path) is None and not (folder / "config.json").is_file():
            model_fingerprint(path)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None


@lru_cache(maxsize=256)
def _digest(files: tuple[tuple[Path, int, int], ...], cache: Path | None) -> str:
    """SHA-256 over names and bytes of (file, size, time of change): once per process, or once for
    all with a ``cache``, for reading gigabytes takes minutes.
    """
    known = [[str(file.absolute()), size, changed] for file, size, changed in files]
    kept = None if cache is None else cache / "fingerprints" / f"{key_of({'files': known})}.json"
    if kept is not None and (found := _kept_digest(kept, known)) is not None:
        return found
    began = time.time_ns()
    digest = hashlib.sha256()
    for file, _, _ in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    # a file that is being written has a time that a later change of the same size may have too
    if kept is not None and all(changed < began - _SETTLED for _, _, changed in files):
        write_json(kept, {"files": known, "sha256": digest.hexdigest()})
    return digest.hexdigest()


def _kept_digest(kept: Path, known: list[list[Any]]) -> str | None:
    try:
        found = json.loads(kept.read_text(encoding="utf-8"))
        return str(found["sha256"]) if found["files"] == known else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_weights(path: str) -> None:
    """A file that was cut off is told at once, and not by an engine that does not start.

    Raises:
        UserError: naming the file.
    """
    from safetensors import SafetensorError, safe_open

    folder = Path(path).expanduser()
    files = sorted(folder.glob("*.safetensors"))
    if folder.is_dir() and not files:
        raise UserError(
            f"{path}: no .safetensors file in this folder, and weights are read from no other; "
            f"load the model once and save_pretrained it"
        )
    for file in files:
        try:
            with safe_open(file, "numpy"):  # reads the header, and holds it against the file's size
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: no intact safetensors file: {error}") from None


def weights_size(path: str) -> int:
    """Bytes of a model's weights: of its files, or where these are elsewhere, of a model of four
    billion parameters.
    """
    files = list(Path(path).expanduser().glob("*.safetensors"))
    return sum(file.stat().st_size for file in files) if files else 8 * 2**30


def in_words(parameters: int) -> str:
    """As "7.6 billion"."""
    if parameters >= 1e8:
        return f"{parameters / 1e9:.1f} billion"
    return f"{parameters / 1e6:.1f} million"


def check_length(key: str, tokens: int, model: str, trust_remote_code: bool) -> None:
    """What is longer than a model's context fails deep inside vLLM, or trains positions that the
    model does not have.

    Raises:
        UserError: ``tokens``, set by ``key``, are more than ``model`` takes.
    """
    context = stated_context(model)
    if context is None:
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(
            model, trust_remote_code=trust_remote_code, revision=commit(model)
        )
        context = getattr(config, "max_position_embeddings", None)
    if context is not None and tokens > context:
        raise UserError(
            f"{key}: this makes {tokens} tokens, more than the {context} that {model} takes"
        )


def stated_context(model: str) -> int | None:
    """The context that a model's folder states by its usual name, read without transformers, which
    takes seconds to load.
    """
    file = Path(model).expanduser() / "config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["max_position_embeddings"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, int) else None


@lru_cache(maxsize=2)
def load_plain_tokenizer(path: str, trust_remote_code: bool) -> Any:
    """The tokenizer as it is, loaded once per process."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        fetch(path), trust_remote_code=trust_remote_code, revision=commit(path)
    )
