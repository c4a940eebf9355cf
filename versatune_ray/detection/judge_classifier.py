"""A judge that is a Hugging Face sequence classifier: one forward pass per batch of texts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from versatune_ray.detection.judge_spec import JUDGED, JudgeSpec
from versatune_ray.errors import UserError
from versatune_ray.runs.storage import fetch
from versatune_ray.runtime.engine import replicas
from versatune_ray.runtime.models import commit
from versatune_ray.runtime.pool import Pool, Staff

_MOST_TEXTS = 32  # of one forward pass


class Classifier:
    """Answers batches of texts; loaded once per replica."""

    def __init__(
        self,
        path: str,
        classes: Sequence[int],
        max_tokens: int,
        *,
        gpu: bool,
        trust_remote_code: bool,
    ):
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        path = fetch(path)
        self._torch, self._classes = torch, list(classes)
        at: dict[str, Any] = {"trust_remote_code": trust_remote_code, "revision": commit(path)}
        self._tokenizer = AutoTokenizer.from_pretrained(path, **at)
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        # RoBERTa's positions begin at 2
        self._max_tokens = min(max_tokens, self._tokenizer.model_max_length)
        self._device = "cuda" if gpu else "cpu"
        model = AutoModelForSequenceClassification.from_pretrained(path, use_safetensors=True, **at)
        model.config.pad_token_id = self._tokenizer.pad_token_id
        self._model = model.eval().to(self._device)

    def __call__(self, batch: pa.Table) -> pa.Table:
        torch, texts = self._torch, batch["text"].to_pylist()
        tokens = self._tokenizer(
            texts,
            truncation=True,
            max_length=self._max_tokens,
            padding=True,
            return_tensors="pt",
            split_special_tokens=True,
        )
        with torch.inference_mode():
            every = (
                self._model(**tokens.to(self._device)).logits.double().softmax(dim=1).cpu().numpy()
            )
        chosen = every[:, self._classes]
        mass = chosen.sum(axis=1)
        n = len(texts)
        answered: dict[str, Any] = {
            "id": batch["id"],
            "values": (chosen / mass[:, None]).tolist(),
            "mass": mass,
            "answer": [None] * n,
            "discarded": [None] * n,
            "failed": np.zeros(n, dtype=bool),
        }
        return pa.table(answered, schema=pa.schema(list(JUDGED.items()))).append_column(
            "store", batch["store"]
        )


def classifier_stage(spec: JudgeSpec) -> Pool:
    """Actors with a classifier each: see ``judge.KINDS``.

    Raises:
        UserError: a domain has no class of its own.
    """
    from transformers import AutoConfig

    settings, engine = spec.settings, spec.settings.engine
    config = AutoConfig.from_pretrained(
        spec.model, trust_remote_code=spec.trust_remote_code, revision=commit(spec.model)
    )
    classes = [
        class_of(domain, settings.classes.get(domain, domain), config.id2label)
        for domain in spec.question.domains
    ]
    longest = min(
        settings.max_text_tokens,
        getattr(config, "max_position_embeddings", settings.max_text_tokens),
    )
    options: dict[str, Any] = {"num_cpus": engine.cpus, "num_gpus": 1 if spec.gpu else 0}
    options |= {"resources": engine.resources} if engine.resources else {}
    options |= {"accelerator_type": engine.accelerator} if engine.accelerator else {}
    options |= {"label_selector": engine.labels} if engine.labels else {}
    made = partial(
        Classifier,
        spec.model,
        classes,
        longest,
        gpu=spec.gpu,
        trust_remote_code=spec.trust_remote_code,
    )
    size = min(engine.batch_size, _MOST_TEXTS)
    return Pool(lambda: Staff(made, replicas(engine), options, 2, size))


def class_of(domain: str, name: str, classes: dict[int, str]) -> int:
    """The index of a domain's class.

    Raises:
        UserError: the model has no class of that name.
    """
    for index, label in classes.items():
        if label.casefold() == name.casefold():
            return int(index)
    listed = ", ".join(map(str, list(classes.values())[:12]))
    raise UserError(
        f"detection.judge.classes.{domain}: the classifier has no class {name!r}; it has {listed}"
    )
