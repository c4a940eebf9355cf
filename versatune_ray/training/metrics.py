"""What is measured while a run trains, by rank 0: every step, and the domains at every adjustment.
No Ray here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from versatune_ray.settings import Config
from versatune_ray.training.loggers import Background, MetricLogger, Row, open_loggers, scalars
from versatune_ray.training.model import model_size
from versatune_ray.training.trainer import Trainer

# Dense bf16 operations per second of tensor cores, in units of 1e12: NVIDIA's and AMD's data
# sheets, halved where those count sparsity.
_PEAK = {
    "GB200": 2500, "B200": 2250, "GH200": 989, "H200 NVL": 836, "H200": 989, "H100 NVL": 835,
    "H100 PCIe": 756, "H100": 989,
    "A100": 312, "A40": 149.7, "A30": 165, "A10": 125, "L40S": 362, "L40": 181, "L4": 121,
    "RTX 4090": 165.2, "RTX 3090": 71,
    "MI300X": 1307,
}  # fmt: skip
_KINDS = {
    "share": "share",
    "loss": "loss",
    "train_loss": "train_loss",
    "learnable_potential": "learnable_potential",
    "forgetting_degree": "forgetting_degree",
    "passes": "passes",
    "token_share": "token_share_achieved",
}


class Metrics:
    """Measures for ``loggers`` (none on other ranks than the first); a context manager that ends
    them.

    Each step, under ``train/``: ``loss`` (of all ranks, nats per response token or byte),
    ``learning_rate``, ``gradient_norm``, ``step_seconds``, ``tokens_per_second`` (of all ranks),
    ``mfu`` (where the peak is known), ``peak_memory_gib`` (of this rank's GPU); and
    ``step_loss/NAME`` of each domain that it drew. A step that was left out has no loss. Each
    adjustment, per domain: ``share/NAME`` and so on, see ``_KINDS``; ``loss`` is
    held out, or with ``mixture.feedback=train`` that of training.
    """

    def __init__(self, trainer: Trainer, loggers: Sequence[Background] = ()):
        self._trainer, self._loggers = trainer, loggers
        self._work = Work.of(trainer.model)
        bf16 = trainer.device.type == "cuda" and trainer.parallel.bf16
        self._peak = peak_flops(torch.cuda.get_device_name(trainer.device)) if bf16 else None

    @classmethod
    def begin(
        cls,
        config: Config,
        folder: Path,
        trainer: Trainer,
        lines: Sequence[Mapping[str, Any]],
        ours: MetricLogger | None,
        warn: Callable[[str], None],
    ) -> Metrics:
        """For a run that starts, or goes on after ``lines`` of its log.

        Args:
            ours: a logger beside the configured ones, which remembers nothing from earlier
                attempts.
            warn: gets a sentence when a logger fails.

        Raises:
            UserError: see ``open_loggers``.
        """
        if trainer.rank:
            return cls(trainer)
        first = trainer.steps_done + 1 if lines else 0
        loggers = [
            Background(name, logger, warn)
            for name, logger in open_loggers(config, folder, first, warn).items()
        ]
        if ours is not None:
            loggers.append(Background("gauges", ours, warn))
            if lines:
                loggers[-1].put(Row(lines[-1]["step"], time.time(), domain_scalars(lines[-1])))
        return cls(trainer, loggers)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for logger in self._loggers:
            logger.close(failed=kind is not None)

    def step(self, seconds: float) -> str:
        """Note the step that was just made; returns it in words."""
        trainer, made = self._trainer, self._trainer.last
        assert made is not None
        rate, seen = float(made.lengths.sum()) / seconds, made.count > 0
        if self._loggers:
            values = {
                "learning_rate": made.rate,
                "gradient_norm": made.norm,
                "step_seconds": seconds,
                "tokens_per_second": rate,
            }
            if self._peak is not None:
                values["mfu"] = (
                    self._work.flops(made.lengths, made.responses)
                    / seconds
                    / (self._peak * trainer.world)
                )
            if trainer.device.type == "cuda":
                values["peak_memory_gib"] = torch.cuda.max_memory_allocated(trainer.device) / 2**30
            if seen.any():
                values["loss"] = made.loss
            values |= made.terms
            drawn = np.flatnonzero(seen)
            losses = {
                trainer.data[domain].name: made.nats[domain] / made.count[domain]
                for domain in drawn
            }
            self._put(trainer.steps_done, scalars("train", values) | scalars("step_loss", losses))
        return f"{f'loss {made.loss:.3f}' if seen.any() else 'left out'}  {rate:,.0f} tokens/s"

    def adjusted(self, line: Mapping[str, Any]) -> None:
        """Note a line of ``adjustments.jsonl``."""
        self._put(line["step"], domain_scalars(line))

    def flush(self) -> None:
        """What was measured so far outlives this process."""
        for logger in self._loggers:
            logger.flush()

    def _put(self, step: int, values: Mapping[str, float]) -> None:
        row = Row(step, time.time(), values)
        for logger in self._loggers:
            logger.put(row)


@dataclass(frozen=True)
class Work:
    """The model's floating-point operations in training; what is computed twice to save memory
    counts once.

    2 forward per weight and token, 2 backward where it or something before it is trained, 2 more
    where it is trained itself; causal attention 2 · ``width`` forward per pair of positions, and 4
    backward (Kaplan et al. 2020, table 1; PaLM, appendix B). weights: those that every token meets;
    head: those of the output embedding, which only response tokens meet; each with those of them
    that the backward pass reaches, and the trained ones. reached: the part of the decoder's layers
    that it reaches.
    """

    weights: tuple[int, int, int]
    head: tuple[int, int, int]
    width: int
    reached: float = 1.0

    @classmethod
    def of(cls, model: PreTrainedModel) -> Work:
        weights, trained, width = model_size(model)
        head = model.get_output_embeddings().weight
        layers = list(model.get_decoder().layers)  # type: ignore[union-attr, arg-type]
        moving = [any(one.requires_grad for one in layer.parameters()) for layer in layers]
        whole = model.get_input_embeddings().weight.requires_grad
        below = 0 if whole else moving.index(True) if True in moving else len(layers)
        unreached = sum(one.numel() for layer in layers[:below] for one in layer.parameters())
        sizes = head.numel(), head.numel(), head.numel() if head.requires_grad else 0
        return cls((weights, weights - unreached, trained), sizes, width, 1 - below / len(layers))

    def flops(self, lengths: NDArray[np.int64], responses: NDArray[np.int64]) -> float:
        """Of samples of so many tokens, of which so many are response tokens, each [n]."""
        length = lengths.astype(np.float64)
        attention = (2 + 4 * self.reached) * self.width * np.square(length).sum()
        return float(
            2 * sum(self.weights) * length.sum() + attention + 2 * sum(self.head) * responses.sum()
        )


def peak_flops(name: str) -> float | None:
    """Dense bf16 operations per second of the GPU that calls itself ``name``; None where unknown,
    or a part of one.
    """
    words = set(re.split(r"[ -]", name))
    known = (1e12 * peak for gpu, peak in _PEAK.items() if words.issuperset(gpu.split()))
    return None if "MIG" in words else next(known, None)


def domain_scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """A line of ``adjustments.jsonl`` by kind and domain."""
    return {
        name: value
        for kind, key in _KINDS.items()
        for name, value in scalars(kind, line[key]).items()
    }
