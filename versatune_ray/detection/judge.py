"""Stage two of detection: every text is put to a judge once, and its answer kept; all models' texts
go through one pass.

Which kinds of judge there are stands in ``KINDS``; everything else is common to them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from versatune_ray.detection.answers import unjudged
from versatune_ray.detection.judge_classifier import classifier_stage
from versatune_ray.detection.judge_http import http_stage
from versatune_ray.detection.judge_spec import JUDGED, JudgeSpec
from versatune_ray.detection.judge_vllm import vllm_judge
from versatune_ray.detection.prompt import order_of
from versatune_ray.detection.texts import TextFile, Texts, read_texts
from versatune_ray.errors import redacted
from versatune_ray.runs.cache import held, write_json
from versatune_ray.runs.parts import join_parts, write_parts
from versatune_ray.runs.storage import push
from versatune_ray.runtime.pool import Pool
from versatune_ray.runtime.progress import engine_bar

Progress = Callable[[int], None]

# ``judge.kind`` → what answers rows of ``requests`` with columns ``store`` and ``JUDGED``
KINDS: dict[str, Callable[[JudgeSpec], Pool]] = {
    "vllm": vllm_judge,
    "http": http_stage,
    "classifier": classifier_stage,
}
_MOST_BLOCKS = 1000  # blocks of a Ray Data plan cost its driver time, whatever is in them


class StandingJudge:
    """A judge that stays up from the first text that it is asked about until it is closed; several
    threads may ask it.
    """

    def __init__(self, spec: JudgeSpec):
        self.spec, self._lock = spec, threading.Lock()
        self._pool: Pool | None = None
        self._closed: Pool | None = None
        self._ended = False

    def start(self) -> None:
        """Begin to start it, and do not wait."""
        self.checked().start()

    def answering(self, rows: Any, batches: int) -> Any:
        """The plan that answers ``rows`` of ``requests``."""
        return self.checked()(rows, batches)

    def checked(self) -> Pool:
        """What answers; nothing is started.

        Raises:
            UserError: it could not answer: see ``KINDS``.
        """
        with self._lock:
            if self._ended:
                raise RuntimeError("the job ends: nothing more is asked")
            if self._pool is None:
                if self._closed is None:
                    self._pool = KINDS[self.spec.settings.kind](self.spec)
                else:
                    self._pool = self._closed.again()
            return self._pool

    def close(self, for_good: bool = True) -> None:
        """Let it go; or not ``for_good``, and asked again, it starts again."""
        with self._lock:
            pool, self._pool, self._ended = self._pool, None, for_good
            self._closed = None if for_good else pool or self._closed
        if pool is not None:
            pool.close()


def judge(
    spec: JudgeSpec,
    texts: Sequence[Texts],
    asked: StandingJudge | None = None,
    *,
    name: str = "",
    on: Progress = lambda done: None,
) -> list[int]:
    """Ask the judge about every text that it has not answered for yet, all in one pass; returns how
    many texts of each store that were.

    Args:
        asked: a judge that is up; none: one for this pass.
        name: of the bar.
        on: told the answers written so far; what it raises ends the pass.
    """
    if asked is None:
        with closing(StandingJudge(spec)) as asked:
            return judge(spec, texts, asked, name=name, on=on)
    # Two names may stand for one model: its texts are asked about once.
    first = {source.judged: store for store, source in reversed(list(enumerate(texts)))}

    def left() -> list[TextFile]:
        return [
            file
            for store, source in enumerate(texts)
            if first[source.judged] == store
            for file in unjudged(spec, store, source)
        ]

    with ExitStack() as locks:
        # One order for every job, so that two cannot wait for each other; and only what has to be
        # done is locked.
        for judged in sorted({texts[file.store].judged for file in left()}):
            judged.mkdir(parents=True, exist_ok=True)
            locks.enter_context(held(judged))
        files = left()
        counts = [
            sum(len(file.ids) for file in files if file.store == store)
            for store in range(len(texts))
        ]
        if files:
            for source in texts:
                write_json(
                    source.judged / "about.json",
                    redacted({"judge": spec.model, "texts": str(source.folder)}),
                )
                push(source.judged / "about.json")
            batches = -(-sum(counts) // spec.settings.engine.batch_size)
            with engine_bar(f"judging {name}".strip(), sum(counts)) as bar:

                def told(done: int) -> None:
                    bar.to(done)
                    on(done)

                write_parts(
                    asked.answering(requests(spec, files), batches),
                    [source.judged for source in texts],
                    JUDGED,
                    told,
                )
            for store in {file.store for file in files}:
                join_parts(texts[store].judged, JUDGED, whole=True)
    return [-(-count // spec.requests) for count in counts]


def requests(spec: JudgeSpec, files: Sequence[TextFile]) -> Any:
    """A Ray dataset of everything to ask: id, store, text, order of the options, node."""
    import ray

    orders, each, longest = spec.question.orders, spec.requests, spec.longest_text

    def read(batch: pa.Table) -> pa.Table:
        ids = batch["ids"][0].values.to_numpy()
        numbers = ids // each
        table = read_texts(Path(batch["file"][0].as_py()), int(numbers[0]), int(numbers[-1]))
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

    def block(several: Sequence[TextFile]) -> pa.Table:
        return pa.table(
            {
                "store": [file.store for file in several],
                "file": [str(file.file) for file in several],
                "ids": pa.array([file.ids for file in several], pa.list_(pa.int64())),
            }
        )

    size = -(-len(files) // _MOST_BLOCKS)
    blocks = [block(files[start : start + size]) for start in range(0, len(files), size)]
    rows = ray.data.from_arrow(blocks).map_batches(read, batch_size=1, batch_format="pyarrow")
    # A task gives its rows when it ends: small blocks are written soon after they are answered.
    return rows.repartition(target_num_rows_per_block=spec.settings.engine.batch_size)
