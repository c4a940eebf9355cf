"""What several tests need: a throw-away Ray, jobs as users start them, a random tiny model with its
tokenizer, token stores from lists.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

os.environ.setdefault("RAY_AUTH_MODE", "token")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """A local Ray of its own, gone afterwards with all its files, those of killed workers
    included.
    """
    import ray

    folder = tempfile.mkdtemp(prefix="vt")  # short: Ray's sockets live in it
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = folder
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        _temp_dir=folder,
        logging_level="ERROR",
        log_to_driver=False,
    )
    try:
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
        os.environ.pop("TMPDIR")
        if before is not None:
            os.environ["TMPDIR"] = before


def start_job(
    job: dict[str, Any], script: str, folder: Path, *overrides: str
) -> subprocess.Popen[str]:
    """``jobs/SCRIPT`` with the configuration ``job``, in a process group of its own; its runs go to
    ``folder / "runs"``.
    """
    (folder / "job.yaml").write_text(yaml.safe_dump(job, sort_keys=False))
    command = [
        sys.executable,
        str(ROOT / "jobs" / script),
        "--config",
        str(folder / "job.yaml"),
        f"storage={folder / 'runs'}",
        *overrides,
    ]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.Popen(
        command,
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish_job(process: subprocess.Popen[str], status: int = 0) -> str:
    """Wait for a job's end; returns what it printed."""
    try:
        printed, _ = process.communicate(timeout=500)
    except subprocess.TimeoutExpired:
        process.terminate()  # or it would outlive the test
        raise
    assert process.returncode == status, printed
    return printed


def kill_job(process: subprocess.Popen[str], ready: Callable[[], bool]) -> str:
    """``kill -9`` a job with all it started, as soon as it is ``ready``; returns what it
    printed.
    """
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None and not ready():
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    return process.communicate()[0]


def write_store(folder: Path, samples: Sequence[tuple[Sequence[int], int]]) -> Path:
    """A token store of ``(tokens, length of the prompt)`` pairs; every token after the prompt
    carries loss, one byte each.
    """
    from versatune_ray.domains.spec import Input
    from versatune_ray.domains.store import Batch, TokenStoreWriter

    with TokenStoreWriter(
        folder, [Input(f"{folder}.jsonl", f"{folder.name}.jsonl", "jsonl")]
    ) as writer:
        writer.append(
            Batch(
                tokens=np.concatenate([np.array(tokens, np.int32) for tokens, _ in samples]),
                mask=np.concatenate(
                    [np.arange(len(tokens)) >= prompt for tokens, prompt in samples]
                ),
                lengths=np.array([len(tokens) for tokens, _ in samples], np.int64),
                hashes=np.arange(len(samples), dtype=np.uint64)
                + np.uint64(abs(hash(str(folder))) % 2**40 << 20),
                response_bytes=np.array(
                    [len(tokens) - prompt for tokens, prompt in samples], np.int64
                ),
                locations=np.stack(
                    [np.zeros(len(samples), np.int64), np.arange(1, len(samples) + 1)], axis=1
                ),
            )
        )
    return folder


def random_samples(seed: int, count: int, vocabulary: int = 64) -> list[tuple[list[int], int]]:
    """Token lists of 4 to 19 tokens, of which 1 to 3 are the prompt."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, 20, count)
    return [(rng.integers(3, vocabulary, n).tolist(), int(rng.integers(1, 4))) for n in lengths]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama over 64 tokens with a tokenizer: an ordinary model folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "random-llama"
    torch.manual_seed(0)
    settings = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    LlamaForCausalLM(
        LlamaConfig(**settings, max_position_embeddings=64, tie_word_embeddings=True)
    ).save_pretrained(folder)
    words = {"<s>": 0, "</s>": 1, "<pad>": 2, **{f"w{i}": i for i in range(3, 64)}}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)
    return folder
