"""Stage two of detection: every text is put to a judge once, and its answer kept; all models' texts
go through one pass.

Which judge it is — a model in vLLM, an endpoint, a classifier — is decided here and told by
``stage``; everything else is common.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
from numpy.typing import NDArray

from versatune_ray.detection import prompt
from versatune_ray.detection.endpoint import Endpoint
from versatune_ray.detection.prompt import order_of
from versatune_ray.errors import redacted
from versatune_ray.runs.cache import held, key_of, write_json
from versatune_ray.runs.parts import finished_ids, read_rows, write_parts
from versatune_ray.runs.storage import fetch, push
from versatune_ray.runtime.engine import engine_key
from versatune_ray.runtime.models import check_weights, load_plain_tokenizer, model_fingerprint
from versatune_ray.runtime.progress import engine_bar
from versatune_ray.settings import Config, Judge

Array = NDArray[np.float64]

JUDGED = {
    "id": pa.int64(),  # number of the text × requests per text + number of the request
    # probabilities; of what, the judge's kind decides (``JudgeSpec.shares``)
    "values": pa.list_(pa.float64()),
    # raw probability of all options together: small where the judge wants to say something else
    "mass": pa.float64(),
    "answer": pa.string(),  # what the judge wrote, where it writes
    "discarded": pa.string(),
    "failed": pa.bool_(),
}
_FORMAT = 2  # 1 knew no device and no version of vLLM
_CHARACTERS_PER_TOKEN = 4
_MOST_BLOCKS = 1000  # blocks of a Ray Data plan cost its driver time, whatever is in them


class Texts(NamedTuple):
    """Texts to be judged: the folder of their parts, the first ``size`` of them, and the folder of
    the answers.
    """

    folder: Path
    size: int
    judged: Path
    exclude_degenerate: bool = False


class Part(NamedTuple):
    """A file of texts, the number of its store, and the requests to be made about it, int64 [r]."""

    store: int
    file: Path
    ids: NDArray[np.int64]


@dataclass(frozen=True)
class JudgeSpec:
    """A judge ready to run."""

    settings: Judge
    question: prompt.Question
    fingerprint: str
    trust_remote_code: bool
    gpu: bool

    @property
    def model(self) -> str:
        assert self.settings.path is not None, "the settings are complete"
        return self.settings.path

    @cached_property
    def key(self) -> dict[str, Any]:
        """Everything that an answer depends on."""
        settings = self.settings
        asked = {name: getattr(settings, name) for name in ("kind", "max_text_tokens")}
        asked |= {"format": _FORMAT, "model": self.fingerprint, "domains": self.question.domains}
        if settings.kind == "classifier":
            return asked | {"classes": settings.classes}
        asked |= {
            name: getattr(settings, name) for name in ("labels", "answer", "chat_template_kwargs")
        }
        asked["prompts"] = [self.question.prompt(order) for order in range(self.question.orders)]
        asked["answer_tokens"] = settings.answer_tokens if settings.answer == "label" else 1
        asked["engine"] = engine_key(settings.engine, self.gpu) if settings.kind == "vllm" else {}
        return asked

    @cached_property
    def nodes(self) -> list[prompt.Node]:
        """Where the tokens of the answers part; empty for a judge that gives one value per
        domain.
        """
        if self.settings.kind != "vllm" or self.settings.answer == "label":
            return []
        tokenizer = load_plain_tokenizer(self.model, self.trust_remote_code)
        names = (
            sorted(self.question.option_names(0), key=prompt.LETTERS.index)
            if self._lettered
            else self.question.option_names(0)
        )
        return prompt.nodes(prompt.answer_ids(tokenizer, names), prompt.end_token(tokenizer))

    @property
    def requests(self) -> int:
        """Requests per text."""
        return max(1, len(self.nodes))

    @property
    def longest_text(self) -> int:
        """Characters of a text that can matter, so that no more travels."""
        return (
            self.settings.max_text_tokens
            * _CHARACTERS_PER_TOKEN
            * (1 if self.settings.kind == "http" else 4)
        )

    def folder(self, cache: Path, texts: str) -> Path:
        """Where the answers about the texts of one store are kept."""
        return cache / "judged" / key_of({"texts": texts, "judge": self.key})

    def shares(self, ids: NDArray[np.int64], values: Array) -> Array:
        """Domain probabilities [n, k] of texts ``ids`` from all their values [n, requests,
        longest].
        """
        if not self.nodes:
            return values[:, 0, : len(self.question.domains)]
        parted = [values[:, place, : len(node.children)] for place, node in enumerate(self.nodes)]
        found = prompt.combine(self.nodes, parted, len(self.question.domains))
        return (
            np.take_along_axis(found, self.question.positions(ids), axis=1)
            if self._lettered
            else found
        )

    @property
    def _lettered(self) -> bool:
        return self.question.labels == "letters"


def judge_spec(config: Config, *, gpu: bool) -> JudgeSpec:
    """The configured judge.

    Raises:
        UserError: the judge cannot be found or may not be asked, or the prompt or the labels do not
            fit.
    """
    judge = config.detection.judge
    assert judge.path is not None, "the settings are complete"
    fingerprint = (
        f"{judge.http.url} {judge.path}" if judge.kind == "http" else model_fingerprint(judge.path)
    )
    if judge.kind != "http":
        check_weights(judge.path)
    elif judge.http.url is not None:  # now, before anything is generated; and again at each worker
        Endpoint(judge.http.url, judge.path, judge.http.key_variable).check()
    descriptions = {name: domain.description for name, domain in config.domains.items()}
    question = prompt.Question(
        tuple(config.domains),
        descriptions,
        judge.prompt or prompt.DEFAULT_PROMPT,
        judge.labels,
        judge.permute,
    )
    return JudgeSpec(judge, question, fingerprint, config.model.trust_remote_code, gpu)


def judge(spec: JudgeSpec, texts: Sequence[Texts]) -> list[int]:
    """Ask the judge about every text that it has not answered for yet, all in one pass; returns how
    many each source had.
    """
    # Two names may stand for one model: its texts are asked about once.
    first = {source.judged: store for store, source in reversed(list(enumerate(texts)))}

    def left() -> list[Part]:
        return [
            part
            for store, source in enumerate(texts)
            if first[source.judged] == store
            for part in unjudged_parts(spec, store, source)
        ]

    with ExitStack() as locks:
        # One order for every job, so that two cannot wait for each other; and only what has to be
        # done is locked.
        for judged in sorted({texts[part.store].judged for part in left()}):
            judged.mkdir(parents=True, exist_ok=True)
            locks.enter_context(held(judged))
        parts = left()
        asked = [
            sum(len(part.ids) for part in parts if part.store == store)
            for store in range(len(texts))
        ]
        if parts:
            for source in texts:
                write_json(
                    source.judged / "about.json",
                    redacted({"judge": spec.model, "texts": str(source.folder)}),
                )
                push(source.judged / "about.json")
            with engine_bar("judging", sum(asked)) as bar:
                write_parts(
                    stage(spec, requests(spec, parts)),
                    [source.judged for source in texts],
                    JUDGED,
                    bar.to,
                )
    return [-(-requests // spec.requests) for requests in asked]


def requests(spec: JudgeSpec, parts: Sequence[Part]) -> Any:
    """A Ray dataset of everything to ask: id, store, text, order of the options, node."""
    import ray

    orders, each, longest = spec.question.orders, spec.requests, spec.longest_text

    def read(batch: pa.Table) -> pa.Table:
        table = pyarrow.parquet.read_table(
            fetch(batch["part"][0].as_py()), columns=["id", "text"]
        ).sort_by("id")
        ids = batch["ids"][0].values.to_numpy()
        numbers = ids // each
        texts = table["text"].take(pa.array(np.searchsorted(table["id"].to_numpy(), numbers)))
        return pa.table(
            {
                "id": ids,
                "store": np.full(len(ids), batch["store"][0].as_py(), dtype=np.int64),
                "text": pc.utf8_slice_codeunits(texts, 0, longest),
                "order": order_of(numbers, orders),
                "node": ids % each,
            }
        )

    def block(chosen: Sequence[Part]) -> pa.Table:
        return pa.table(
            {
                "store": [part.store for part in chosen],
                "part": [str(part.file) for part in chosen],
                "ids": pa.array([part.ids for part in chosen], pa.list_(pa.int64())),
            }
        )

    size = -(-len(parts) // _MOST_BLOCKS)
    blocks = [block(parts[start : start + size]) for start in range(0, len(parts), size)]
    rows = ray.data.from_arrow(blocks).map_batches(read, batch_size=1, batch_format="pyarrow")
    # A task gives its rows when it ends: small blocks are written soon after they are answered.
    return rows.repartition(target_num_rows_per_block=spec.settings.engine.batch_size)


def stage(spec: JudgeSpec, rows: Any) -> Any:
    """The plan that answers ``rows`` with columns ``store`` and ``JUDGED``."""
    if spec.settings.kind == "http":
        from versatune_ray.detection.judge_http import http_stage

        return http_stage(spec, rows)
    if spec.settings.kind == "classifier":
        from versatune_ray.detection.judge_classifier import classifier_stage

        return classifier_stage(spec, rows)
    from versatune_ray.detection.judge_vllm import vllm_judge

    return vllm_judge(spec, rows)


class Answers(NamedTuple):
    """Answers about n texts by ``ids``: domain probabilities [n, k] (NaN where discarded), mass
    [n], what was written, reason.
    """

    ids: NDArray[np.int64]
    shares: Array
    mass: Array
    answer: list[str | None]
    discarded: list[str | None]


def read_answers(spec: JudgeSpec, folder: Path, count: int) -> Answers:
    """The complete answers about the first ``count`` texts."""
    table = read_rows(folder, JUDGED, ["id", "values", "mass", "answer", "discarded"])
    ids, each = table["id"].to_numpy(), spec.requests
    texts, asked = np.unique(ids // each, return_counts=True)
    complete = texts[(asked == each) & (texts < count)]
    table = table.filter(pa.array(np.isin(ids // each, complete)))
    width = max((len(node.children) for node in spec.nodes), default=len(spec.question.domains))
    listed = table["values"].combine_chunks()
    lengths = pc.list_value_length(listed).to_numpy()
    values = np.full((table.num_rows, width), np.nan)
    # row by row, as they are stored
    values[np.arange(width) < lengths[:, None]] = listed.flatten().to_numpy()
    reasons = table["discarded"].to_pylist()
    first = [
        next((reason for reason in reasons[at : at + each] if reason is not None), None)
        for at in range(0, len(reasons), each)
    ]
    mass = table["mass"].to_numpy().reshape(-1, each)[:, 0]
    written = table["answer"].to_pylist()[::each]
    return Answers(
        complete, spec.shares(complete, values.reshape(-1, each, width)), mass, written, first
    )


def unjudged_parts(spec: JudgeSpec, store: int, source: Texts) -> list[Part]:
    """Per part of a store, the requests still to be made."""
    done = finished_ids(source.judged)
    found = []
    for part in sorted(source.folder.glob("*.parquet")):
        table = pyarrow.parquet.read_table(part, columns=["id", "degenerate", "discarded"])
        wanted = table["discarded"].is_null().to_numpy() & (table["id"].to_numpy() < source.size)
        if source.exclude_degenerate:
            wanted &= ~table["degenerate"].to_numpy()
        ids = table["id"].to_numpy()[wanted]
        asked = (ids[:, None] * spec.requests + np.arange(spec.requests)).ravel()
        left = np.setdiff1d(asked, done)
        if len(left):
            found.append(Part(store, part, left))
    return found
