"""From drawn samples to the tensors of a forward pass: host memory first, so that a thread can do
it while the device is busy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from versatune_ray.domains import Records
from versatune_ray.training.attention import Kind
from versatune_ray.training.batching import Indices, attention_cost, micro_batches

# packed rows are filled up to a multiple of it, so that compiled kernels see few shapes
_ROUND = 128


@dataclass(frozen=True)
class Samples:
    """Records that train or measure: the domain's number and the place among its ``records``, of
    each; int64 [n].
    """

    records: Sequence[Records]
    domain: NDArray[np.int64]
    index: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.domain)

    def take(self, places: Indices) -> Samples:
        return Samples(self.records, self.domain[places], self.index[places])

    @property
    def lengths(self) -> NDArray[np.int64]:
        return self._column("lengths")

    @property
    def response_tokens(self) -> NDArray[np.int64]:
        return self._column("response_tokens")

    @property
    def weights(self) -> NDArray[np.float64]:
        """What each counts in the loss, 1 unless its record says otherwise."""
        return self._column("weights", np.float64)

    def counted(self, unit: str) -> NDArray[np.int64]:
        """What the loss of each is divided by: response tokens, or bytes of the answers."""
        return self._column("response_tokens" if unit == "nats/token" else "response_bytes")

    def locations(self) -> list[str]:
        return [
            self.records[domain].location(int(index))
            for domain, index in zip(self.domain, self.index, strict=True)
        ]

    def _column(self, name: str, kind: Any = np.int64) -> NDArray[Any]:
        found = np.empty(len(self), kind)
        for domain in np.unique(self.domain):
            of_domain = self.domain == domain
            found[of_domain] = getattr(self.records[domain], name)[self.index[of_domain]]
        return found


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass. inputs: the arguments of ``ResponseLoss``, weights among them; domain: of
    every target, [n].

    ``samples`` is empty where this rank has nothing left to do while others still have; what stands
    in for them weighs nothing.
    """

    samples: Samples
    inputs: dict[str, Any]
    domain: torch.Tensor

    def to(self, device: torch.device) -> MicroBatch:
        moved = {
            name: value.to(device, non_blocking=True) if torch.is_tensor(value) else value
            for name, value in self.inputs.items()
        }
        return MicroBatch(self.samples, moved, self.domain.to(device, non_blocking=True))

    def add_to(self, sums: torch.Tensor, nats: torch.Tensor) -> None:
        """Add the nats of every target [n] to those of its domain [k]."""
        if len(self.samples):
            sums.index_add_(0, self.domain, nats.detach().double())


@dataclass(frozen=True)
class Layout:
    """How samples become rows, on every rank alike. parameters, width: see ``attention_cost``.

    equal: all ranks run the same number of micro-batches. pinned: in memory that a GPU copies from
    while it computes.
    """

    attention: Kind
    parameters: int
    width: int
    world: int
    rank: int
    equal: bool
    pinned: bool

    def micro_batches(
        self, samples: Samples, weights: NDArray[np.float64] | None, capacity: int
    ) -> list[MicroBatch]:
        """This rank's part of ``samples``; ``weights``: of a response token of each domain [k],
        where a gradient is asked for. A record's own weight multiplies it.
        """
        lengths = samples.lengths
        costs = attention_cost(lengths, self.parameters, self.width)
        packed = self.attention != "padded"
        plan = micro_batches(lengths, costs, self.world, capacity, packed=packed, equal=self.equal)[
            self.rank
        ]
        return [self.collate(samples.take(rows), weights) for rows in plan]

    def collate(self, samples: Samples, weights: NDArray[np.float64] | None) -> MicroBatch:
        """Samples one per row, padded on the right; or, packed, one after another in a single
        row.
        """
        records = [
            samples.records[domain][int(index)]
            for domain, index in zip(samples.domain, samples.index, strict=True)
        ]
        records = records or [(np.zeros(2, np.int32), np.array([False, True]))]
        lengths = np.array([len(tokens) for tokens, _ in records])
        packed = self.attention != "padded"
        width = -(-int(lengths.sum()) // _ROUND) * _ROUND if packed else int(lengths.max())
        starts = np.cumsum(lengths) - lengths if packed else np.arange(len(records)) * width
        grid = np.zeros((1 if packed else len(records), width), dtype=np.int64)
        kept, targets = [], []
        for start, (tokens, mask) in zip(starts, records, strict=True):
            grid.reshape(-1)[start : start + len(tokens)] = tokens
            before = np.flatnonzero(mask[1:])
            kept.append(start + before)
            targets.append(tokens[before + 1].astype(np.int64))
        domain = np.repeat(
            samples.domain if len(samples) else [0], [len(places) for places in kept]
        )
        inputs = {"tokens": grid, "kept": np.concatenate(kept), "targets": np.concatenate(targets)}
        if weights is not None:
            counted = [len(places) for places in kept]
            each = samples.weights if len(samples) else np.zeros(1)
            inputs["weights"] = (weights[domain] * np.repeat(each, counted)).astype(np.float32)
        more: dict[str, Any] = {}
        if packed:  # what fills the row up is one segment more
            segments = (
                np.append(lengths, width - lengths.sum()) if width > lengths.sum() else lengths
            )
            inputs["position_ids"] = np.concatenate([np.arange(n) for n in segments])[None]
            if self.attention == "varlen":
                inputs["cu_seq_lens_q"] = np.concatenate([[0], np.cumsum(segments)]).astype(
                    np.int32
                )
                more["max_length_q"] = int(segments.max())
        tensors = {name: self._tensor(values) for name, values in inputs.items()}
        return MicroBatch(samples, tensors | more, self._tensor(domain))

    def _tensor(self, values: NDArray[Any]) -> torch.Tensor:
        tensor = torch.from_numpy(values)
        return tensor.pin_memory() if self.pinned else tensor
