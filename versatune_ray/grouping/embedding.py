"""Texts → vectors, in three ways: words (TF-IDF and SVD, no model), the mean hidden state of a
language model, a sentence-transformers model. Each is a UDF of Ray Data, loaded once per worker.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from versatune_ray.errors import UserError
from versatune_ray.grouping.clusters import Vectors
from versatune_ray.settings.grouping import Group

_MOST_WORDS = 50_000
_MANY = 1000  # texts, from which on rare and frequent words are left out
_FREQUENT = 0.3  # share of them above which a word tells nothing


class Embed(Protocol):
    """Vectors of texts, float32 [n, d]."""

    def __call__(self, texts: Sequence[str]) -> Vectors: ...


class Words:
    """Latent semantic analysis: which words a text has, weighted by how rare they are, on the
    directions in which the texts of a sample differ most.
    """

    def __init__(self, texts: Sequence[str], dimensions: int, seed: int):
        """Raises ``UserError`` where the ``texts`` have too few words to tell them apart by."""
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer

        few = len(texts) < _MANY
        self._words = TfidfVectorizer(
            sublinear_tf=True,
            stop_words="english",
            max_df=1.0 if few else _FREQUENT,
            min_df=1 if few else 3,
            max_features=_MOST_WORDS,
        )
        try:
            found = self._words.fit_transform(texts)
        except ValueError:
            many = f", in 3 records or more and at most {_FREQUENT:.0%} of them"
            raise UserError(
                f"group.embedding=words: no words in {len(texts)} records that tell them apart (no "
                f"English stop words{'' if few else many}); choose base or sentences"
            ) from None
        dimensions = min(dimensions, found.shape[1] - 1, found.shape[0] - 1)
        if dimensions < 2:
            raise UserError(
                f"group.sources: {found.shape[0]} records with {found.shape[1]} different words "
                f"are too few to group"
            )
        self._axes = TruncatedSVD(dimensions, random_state=seed).fit(found)

    def __call__(self, texts: Sequence[str]) -> Vectors:
        found: Vectors = self._axes.transform(self._words.transform(texts)).astype(np.float32)
        return found


class HiddenStates:
    """Mean over a text's tokens of the state after ``depth`` of a language model's layers."""

    def __init__(
        self,
        path: str,
        depth: float,
        max_tokens: int,
        threads: int,
        *,
        gpu: bool,
        trust_remote_code: bool,
    ):
        import torch
        from transformers import AutoModel, AutoTokenizer

        from versatune_ray.runs.storage import fetch
        from versatune_ray.runtime.models import commit

        torch.set_num_threads(threads)
        path = fetch(path)
        at: dict[str, Any] = {"trust_remote_code": trust_remote_code, "revision": commit(path)}
        self._torch, self._device = torch, "cuda" if gpu else "cpu"
        self._tokenizer = AutoTokenizer.from_pretrained(path, **at)
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._tokenizer.padding_side = "right"
        self._max_tokens = max_tokens
        model = AutoModel.from_pretrained(
            path, dtype=torch.bfloat16 if gpu else torch.float32, use_safetensors=True, **at
        )
        if not hasattr(model, "layers"):
            raise UserError(
                f"{path}: no decoder whose layers are known here ({type(model).__name__}); choose "
                f"group.embedding=words or sentences, or another model"
            )
        model.layers = model.layers[: max(1, round(depth * len(model.layers)))]
        self._state: Any = None
        # the state before the norm behind the last layer
        model.layers[-1].register_forward_hook(self._keep)
        self._model = model.eval().to(self._device)

    def _keep(self, _: Any, __: Any, output: Any) -> None:
        self._state = output[0] if isinstance(output, tuple) else output

    def __call__(self, texts: Sequence[str]) -> Vectors:
        torch = self._torch
        tokens = self._tokenizer(
            [text or " " for text in texts],  # a text of no token has no state
            truncation=True,
            max_length=self._max_tokens,
            padding=True,
            return_tensors="pt",
            split_special_tokens=True,
        ).to(self._device)
        with torch.inference_mode():
            self._model(
                input_ids=tokens["input_ids"],
                attention_mask=tokens["attention_mask"],
                use_cache=False,
            )
            counts = tokens["attention_mask"].unsqueeze(-1)
            sums = (self._state.float() * counts).sum(dim=1)
            mean: Vectors = (sums / counts.sum(dim=1).clamp(min=1)).cpu().numpy()
        return mean


class Sentences:
    """A sentence-transformers model."""

    def __init__(self, path: str, threads: int, *, gpu: bool, trust_remote_code: bool):
        import torch
        from sentence_transformers import SentenceTransformer

        from versatune_ray.runs.storage import fetch

        torch.set_num_threads(threads)
        self._model = SentenceTransformer(
            fetch(path), device="cuda" if gpu else "cpu", trust_remote_code=trust_remote_code
        )

    def __call__(self, texts: Sequence[str]) -> Vectors:
        found: Vectors = np.asarray(self._model.encode(list(texts)), dtype=np.float32)
        return found


def check_installed(settings: Group) -> None:
    """Whether the packages that grouping needs are there.

    Raises:
        UserError: one is missing; with the command that installs it.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise UserError("jobs/group.py needs scikit-learn: pip install 'versatune-ray[group]'")
    sentences = settings.by == "embedding" and settings.embedding == "sentences"
    if sentences and importlib.util.find_spec("sentence_transformers") is None:
        raise UserError(
            "group.embedding=sentences: pip install sentence-transformers, or choose words or base"
        )
