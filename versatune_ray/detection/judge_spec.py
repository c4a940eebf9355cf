"""A judge ready to run, whatever its kind: what it is asked, what its answers depend on, and how
they become shares.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from versatune_ray.detection import prompt
from versatune_ray.detection.endpoint import Endpoint
from versatune_ray.runs.cache import key_of
from versatune_ray.runtime.engine import engine_key
from versatune_ray.runtime.models import check_weights, load_plain_tokenizer, model_fingerprint
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

    def check_labels(self) -> None:
        """Find out whether the judge can answer at all.

        Raises:
            UserError: its tokenizer cannot tell two labels apart.
        """
        _ = self.nodes

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
        parted = [
            values[:, request, : len(node.children)] for request, node in enumerate(self.nodes)
        ]
        options = prompt.combine(self.nodes, parted, len(self.question.domains))
        return (
            np.take_along_axis(options, self.question.positions(ids), axis=1)
            if self._lettered
            else options
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
        f"{judge.http.url} {judge.path}"
        if judge.kind == "http"
        else model_fingerprint(judge.path, config.cache_folder)
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
