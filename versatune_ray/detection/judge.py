"""Stage two of detection: one vLLM request per sequence, one output token, one probability per domain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.dataset
from numpy.typing import NDArray

from versatune_ray.detection.generate import GENERATED
from versatune_ray.detection.prompt import answer_ids, render
from versatune_ray.engine import vllm_stage
from versatune_ray.models import check_length
from versatune_ray.parts import finished_ids, write_parts
from versatune_ray.settings import Engine

Row = dict[str, Any]


@dataclass(frozen=True)
class JudgeSpec:
    """A judge ready to run: model folder or id, prompt template, kind of answer, longest text it is shown, where it runs."""

    path: str
    prompt: str
    labels: str
    max_text_tokens: int
    engine: Engine
    trust_remote_code: bool
    gpu: bool


def judge(spec: JudgeSpec, domains: Sequence[str], descriptions: Mapping[str, str], generated: Path, folder: Path) -> None:
    """Read the generated rows, add one probability column per domain, write Parquet to ``folder``.

    Rows already there are not judged again. Rows discarded before keep their reason and get NaN; so do rows whose request fails here.
    """
    import ray

    tokenizer = _tokenizer(spec.path, spec.trust_remote_code)
    before, after = render(tokenizer, spec.prompt, domains, descriptions, spec.labels)
    answers = answer_ids(tokenizer, domains, spec.labels)
    names = list(domains)

    def prepare(row: Row) -> Row:
        text = _tokenizer(spec.path, spec.trust_remote_code).encode(row["text"], add_special_tokens=False)[: spec.max_text_tokens]
        # logprob_token_ids gives the raw log-probabilities of exactly the answers, however unlikely they are.
        sampling = {"max_tokens": 1, "temperature": 0.0, "logprob_token_ids": answers, "detokenize": False}
        return row | {"tokenized_prompt": [*before, *text, *after], "sampling_params": sampling}

    def read(row: Row) -> Row:
        values = np.array([row["logprobs"][0][answer]["logprob"] for answer in answers])
        weights = np.exp(values - values.max())
        return _output(row, names, weights / weights.sum(), row["discarded"])

    def finish(row: Row) -> Row:
        error = row.get("__inference_error__") or ""
        if not error:
            return _output(row, names, np.array([row[name] for name in names]), row["discarded"])
        return _output(row, names, np.full(len(names), np.nan), f"judging failed: {error}")

    def set_aside(row: Row) -> Row:
        return _output(row, names, np.full(len(names), np.nan), row["discarded"])

    longest = len(before) + spec.max_text_tokens + len(after) + 1
    check_length("detection.judge.max_text_tokens", longest, spec.path, spec.trust_remote_code)
    engine = spec.engine.model_copy(update={"options": {"max_model_len": longest, "max_logprobs": -1} | spec.engine.options})
    stage = vllm_stage(spec.path, engine, prepare, read, gpu=spec.gpu, trust_remote_code=spec.trust_remote_code)
    schema = GENERATED | {name: pa.float64() for name in names}
    table = pyarrow.dataset.dataset(str(generated), format="parquet").to_table(columns=["id", "discarded"])
    ids, discarded = table["id"].to_numpy(), ~table["discarded"].is_null().to_numpy()
    waiting = np.setdiff1d(ids, finished_ids(folder))
    rows = ray.data.read_parquet(str(generated))

    def run(batch: NDArray[np.int64], name: str, work: Callable[[Any], Any]) -> None:
        if len(batch):
            chosen = rows.map_batches(lambda part: part.filter(pa.compute.is_in(part["id"], pa.array(batch))), batch_format="pyarrow")
            write_parts(work(chosen), folder, schema, name, len(batch))

    run(np.setdiff1d(waiting, ids[discarded]), "judging", lambda rows: stage(rows).map(finish))
    run(np.intersect1d(waiting, ids[discarded]), "setting aside", lambda rows: rows.map(set_aside))


def _output(row: Row, names: Sequence[str], probabilities: Any, discarded: str | None) -> Row:
    kept = {"id": int(row["id"]), "repeat": int(row["repeat"]), "text": row["text"], "tokens": int(row["tokens"]), "discarded": discarded}
    return kept | {name: float(p) for name, p in zip(names, probabilities, strict=True)}


@lru_cache(maxsize=2)
def _tokenizer(path: str, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
