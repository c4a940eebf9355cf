"""The training core, without Ray: one model, one optimizer that never restarts, global batches drawn by share.

Loss is per response token: summed over the global batch and divided by the global token count, across ranks and micro-batches;
``Recipe.length_correction`` weighs domains apart from the length of their answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, get_cosine_schedule_with_warmup

from versatune_ray.domains import DomainData, Records
from versatune_ray.errors import UserError
from versatune_ray.mixture import DomainSampler, chosen
from versatune_ray.training.attention import choose
from versatune_ray.training.batching import attention_cost, micro_batches
from versatune_ray.training.loss import ResponseLoss
from versatune_ray.training.parallel import Parallel
from versatune_ray.training.recipe import LossSums, Recipe, Setup
from versatune_ray.training.trainable import SoftMask

Array = NDArray[np.float64]
_ORDERS = 0x9E3779B97F4A7C15  # between the seeds of two orders: no two of small seeds and few orders meet
_ROUND = 128  # packed rows are filled up to a multiple of it, so that compiled kernels see few shapes


class Unrecoverable(Exception):
    """What another attempt would meet again: a loss or a gradient that is no number (the message names step, domains and records;
    the weights are those before the step), or a decision that the controller refuses."""


@dataclass(frozen=True)
class Sample:
    """A record that trains or measures: its domain's number, the records it belongs to, its place in them."""

    domain: int
    records: Records
    index: int


@dataclass(frozen=True)
class Made:
    """An optimizer step, the same on every rank. lengths, responses: tokens and response tokens of its samples, [batch size].

    norm: of the gradient before clipping. rate: the learning rate.
    """

    lengths: NDArray[np.int64]
    responses: NDArray[np.int64]
    norm: float
    rate: float


class Tuner:
    """One rank of a training run: ``step`` with shares, ``held_out`` to measure, ``checkpoint.save`` and ``load`` to resume exactly."""

    def __init__(
        self,
        model: PreTrainedModel,
        data: Sequence[DomainData],
        recipe: Recipe,
        device: torch.device,
        rank: int = 0,
        world: int = 1,
        setup: Setup = Setup(),  # noqa: B008 - frozen
        records: Sequence[int] | None = None,
        importance: Mapping[str, torch.Tensor] | None = None,
    ):
        """``records``: see ``begin``; ``importance``: of units, see ``SoftMask``."""
        if recipe.batch_size < world:
            raise UserError(f"training.batch_size: {recipe.batch_size} samples cannot be spread over {world} workers")
        self.data, self.device, self.rank, self.world = list(data), device, rank, world
        self.model = model
        self.attention = choose(setup.attention, device)
        self._parameters, _, self._width = model_size(model)
        self.parallel = Parallel(ResponseLoss(model), setup, device, rank, world)
        self._mask = SoftMask(self.parallel.module, importance) if importance else None
        self.begin(recipe, records)
        self.steps_done = 0
        self.place = 0.0  # steps done, and a half more while this rank waits for the others' gradients
        self.last: Made | None = None
        self.tokens_done = 0  # of all ranks, in the last step: what they computed on, without padding
        # Since the last adjustment: this rank's training loss, and every rank's samples and response tokens per domain.
        self.train_loss = LossSums.zeros(len(self.data))
        self.samples = np.zeros(len(self.data), dtype=np.int64)
        self.tokens = np.zeros(len(self.data), dtype=np.int64)

    def begin(self, recipe: Recipe, records: Sequence[int] | None = None, *, fresh: bool = True) -> None:
        """Go on with the same weights by another recipe, on ``records`` of each domain's training records, [k] (None: all of them).

        Which records these are depends on their number and the seed alone. Unless ``fresh``, optimizer and schedule go on.
        """
        self.recipe = recipe
        if fresh:
            trained = [parameter for parameter in self.parallel.module.parameters() if parameter.requires_grad]
            self.optimizer = torch.optim.AdamW(trained, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)
            if self._mask is not None:
                self._mask.attach(self.optimizer)
            steps = recipe.scheduled or recipe.steps
            self.schedule = get_cosine_schedule_with_warmup(self.optimizer, math.ceil(recipe.warmup * steps), steps)
        sizes = [len(domain.train) for domain in self.data]
        self._counts = sizes if records is None else list(records)
        parts = enumerate(zip(sizes, self._counts, strict=True))
        self._chosen = [None if count == size else chosen(size, count, recipe.seed, domain) for domain, (size, count) in parts]
        names = [domain.name for domain in self.data]
        seed = (recipe.seed + recipe.order * _ORDERS) % 2**64
        self.sampler = DomainSampler(self._counts, recipe.batch_size, seed, names=names, max_passes=recipe.max_passes, steps=recipe.steps)

    def step(self, shares: Array) -> float:
        """One optimizer step on one global batch; returns this rank's mean loss in nats per response token.

        Raises:
            Unrecoverable: on every rank, before the weights change.
        """
        domain, index = self.sampler.next_batch(shares)
        samples = [self._sample(int(d), int(i)) for d, i in zip(domain, index, strict=True)]
        tokens = np.array([sample.records.response_tokens[sample.index] for sample in samples])
        batches, sums = self._backward(samples, self._token_weights(domain, tokens))
        norm = self.parallel.clip(self.recipe.max_grad_norm)
        found = self._losses(sums, [sample for rows in batches for sample in rows])
        if not math.isfinite(norm):
            self._stop(batches, found)
        lengths = np.array([sample.records.lengths[sample.index] for sample in samples])
        self.last = Made(lengths, tokens, norm, float(self.schedule.get_last_lr()[0]))
        self.tokens_done = int(lengths.sum())
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        np.add.at(self.samples, domain, 1)
        np.add.at(self.tokens, domain, tokens)
        self.train_loss += found
        self.steps_done += 1
        return float(found.nats.sum() / max(1, sum(int(s.records.response_tokens[s.index]) for rows in batches for s in rows)))

    def gradient_products(self, records: int) -> Array:
        """g_i · g_j of the domains' gradients at the present weights, [k, k], the same on every rank.

        g_j is the gradient of the mean loss over the response tokens of ``records`` of domain j's training records (fewer if it has
        fewer, but one for each rank), drawn anew at every step of the run without moving the sampler; of a domain that this recipe does
        not draw from, 0. Costs a forward and a backward pass over k · ``records``, and memory for k gradients.
        """
        k = len(self.data)
        drawn_from = [domain for domain in range(k) if self._counts[domain]]
        gradients = []
        for domain in drawn_from:
            draw, size = np.random.default_rng([self.recipe.seed, self.steps_done, domain]), self._counts[domain]
            count = max(min(records, size), self.world)
            samples = [self._sample(domain, int(index)) for index in draw.choice(size, count, replace=count > size)]
            weights = np.zeros(k)
            weights[domain] = 1 / sum(int(sample.records.response_tokens[sample.index]) for sample in samples)
            self._backward(samples, weights)
            gradients.append(self.parallel.take_gradients())
        found = np.zeros((k, k))
        found[np.ix_(drawn_from, drawn_from)] = self.parallel.products(gradients)
        return found

    @torch.no_grad()
    def held_out(self, progress: Callable[[int], None] = lambda records: None) -> LossSums:
        """This rank's part of every domain's validation records; the sum over ranks is the whole."""
        self.parallel.module.eval()
        samples = [Sample(d, domain.validation, i) for d, domain in enumerate(self.data) for i in range(len(domain.validation))]
        sums, batches = self._zeros(), self._mine(samples)
        for rows in batches:
            batch = _collate(rows, self.attention, self.device)
            batch.add_to(sums, self.parallel.forward(batch.inputs, train=False))
            progress(len(rows))
        return self._losses(sums, [sample for rows in batches for sample in rows])

    def take_counts(self) -> tuple[LossSums, NDArray[np.int64], NDArray[np.int64]]:
        """Training loss, samples and response tokens per domain since the last call; starts them anew."""
        taken = self.train_loss, self.samples.copy(), self.tokens.copy()
        self.train_loss = LossSums.zeros(len(self.data))
        self.samples[:] = 0
        self.tokens[:] = 0
        return taken

    def _sample(self, domain: int, index: int) -> Sample:
        """One of the records that the domain trains on."""
        records = self._chosen[domain]
        return Sample(domain, self.data[domain].train, index if records is None else int(records[index]))

    def _backward(self, samples: Sequence[Sample], weights: Array) -> tuple[list[list[Sample]], torch.Tensor]:
        """Add up the gradient of a loss in which a response token of domain j counts ``weights[j]``.

        Returns this rank's micro-batches, and their nats per domain [k].
        """
        # Gradients are averaged over ranks; the loss is a sum over the global batch.
        scaled = torch.from_numpy(self.world * weights).to(self.device, torch.float32)
        self.parallel.module.train()
        batches, sums = self._mine(samples), self._zeros()
        self.place = float(self.steps_done)
        for place, rows in enumerate(batches):
            batch = _collate(rows, self.attention, self.device)
            last = place == len(batches) - 1
            with self.parallel.last_backward(last):
                nats = self.parallel.forward(batch.inputs, train=True)
                self.place += last / 2
                (nats @ scaled[batch.domain] * batch.weight).backward()  # type: ignore[no-untyped-call]
            batch.add_to(sums, nats)
        return batches, sums

    def _token_weights(self, domain: NDArray[np.int64], tokens: NDArray[np.int64]) -> Array:
        """What one response token of each domain counts in the loss of a batch, [k], from the domain and tokens of its samples [b].

        The mean loss of domain j weighs as n_j^c · T_j^(1−c), for n_j samples of T_j tokens and a correction c: 0 is the mean over tokens.
        """
        k, c = len(self.data), self.recipe.length_correction
        samples, in_domain = np.bincount(domain, minlength=k), np.bincount(domain, tokens, k)
        weight = samples**c * in_domain ** (1 - c)
        found: Array = np.divide(weight / weight.sum(), in_domain, out=np.zeros(k), where=in_domain > 0)
        return found

    def _mine(self, samples: Sequence[Sample]) -> list[list[Sample]]:
        """This rank's micro-batches of ``samples``."""
        lengths = np.array([sample.records.lengths[sample.index] for sample in samples], dtype=np.int64)
        plan = micro_batches(
            lengths,
            attention_cost(lengths, self._parameters, self._width),
            self.world,
            self.recipe.micro_batch_tokens,
            packed=self.attention != "padded",
            equal=self.parallel.in_step,
        )
        return [[samples[item] for item in rows] for rows in plan[self.rank]]

    def _zeros(self) -> torch.Tensor:
        """Nats per domain, summed on the device so that nothing waits for it. MPS and others without float64 are not supported."""
        return torch.zeros(len(self.data), dtype=torch.float64, device=self.device)

    def _losses(self, nats: torch.Tensor, samples: Sequence[Sample]) -> LossSums:
        count = np.zeros(len(self.data))
        for sample in samples:
            counted = sample.records.response_tokens if self.recipe.unit == "nats/token" else sample.records.response_bytes
            count[sample.domain] += counted[sample.index]
        return LossSums(nats.cpu().numpy(), count)

    @torch.no_grad()
    def _stop(self, batches: Sequence[Sequence[Sample]], sums: LossSums) -> None:
        """Find out what is not finite, and say so on every rank."""
        mine: list[str] = []
        if not np.isfinite(sums.nats).all() and not self.parallel.in_step:
            for sample in (sample for rows in batches for sample in rows):
                nats = self.parallel.forward(_collate([sample], self.attention, self.device).inputs, train=False)
                if not torch.isfinite(nats).all():
                    mine.append(f"{self.data[sample.domain].name}: {sample.records.location(sample.index)}")
        elif not np.isfinite(sums.nats).all():  # a single rank cannot go through a sharded model; all its samples of the domain are named
            bad = ~np.isfinite(sums.nats)
            named = [sample for rows in batches for sample in rows if bad[sample.domain]]
            mine = [f"{self.data[sample.domain].name}: {sample.records.location(sample.index)}" for sample in named]
        found = sorted({text for texts in self.parallel.gather(mine) for text in texts})
        shown = "; ".join(found[:8]) + (f"; and {len(found) - 8} more" if len(found) > 8 else "")
        what = f"the loss is not finite on {shown}" if found else "a gradient is not finite, though every loss is"
        raise Unrecoverable(f"step {self.steps_done + 1}: {what}; the last checkpoint is intact")


@dataclass(frozen=True)
class MicroBatch:
    """Tensors of one forward pass (``inputs``: the arguments of ``ResponseLoss``) and the domain of every target, [n].

    ``weight`` is 0 for a stand-in where this rank has nothing left to do while others still have.
    """

    inputs: dict[str, Any]
    domain: torch.Tensor
    weight: float = 1.0

    def add_to(self, sums: torch.Tensor, nats: torch.Tensor) -> None:
        if self.weight:
            sums.index_add_(0, self.domain, nats.detach().double())


def _collate(samples: Sequence[Sample], attention: str, device: torch.device) -> MicroBatch:
    """Samples one per row, padded on the right; or, packed, one after another in a single row."""
    records = [sample.records[sample.index] for sample in samples] or [(np.zeros(2, np.int32), np.array([False, True]))]
    domains = [sample.domain for sample in samples] or [0]
    lengths = np.array([len(tokens) for tokens, _ in records])
    packed = attention != "padded"
    width = -(-int(lengths.sum()) // _ROUND) * _ROUND if packed else int(lengths.max())
    starts = np.cumsum(lengths) - lengths if packed else np.arange(len(records)) * width
    grid = np.zeros((1 if packed else len(records), width), dtype=np.int64)
    kept, targets = [], []
    for start, (tokens, mask) in zip(starts, records, strict=True):
        grid.reshape(-1)[start : start + len(tokens)] = tokens
        before = np.flatnonzero(mask[1:])
        kept.append(start + before)
        targets.append(tokens[before + 1].astype(np.int64))
    inputs = {"tokens": grid, "kept": np.concatenate(kept), "targets": np.concatenate(targets)}
    more: dict[str, Any] = {}
    if packed:
        segments = np.append(lengths, width - lengths.sum()) if width > lengths.sum() else lengths  # what fills the row up is one more
        inputs["position_ids"] = np.concatenate([np.arange(n) for n in segments])[None]
        if attention == "varlen":
            inputs["cu_seq_lens_q"] = np.concatenate([[0], np.cumsum(segments)]).astype(np.int32)
            more["max_length_q"] = int(segments.max())
    tensors = {name: torch.from_numpy(values).to(device, non_blocking=True) for name, values in inputs.items()}
    domain = torch.from_numpy(np.repeat(domains, [len(places) for places in kept])).to(device, non_blocking=True)
    return MicroBatch(tensors | more, domain, 1.0 if samples else 0.0)


def model_size(model: PreTrainedModel) -> tuple[int, int, int]:
    """Parameters that every token meets, embeddings aside; those of them that train; layers × heads × head size (``attention_cost``)."""
    config = model.config
    embeddings = {id(module.weight) for module in (model.get_input_embeddings(), model.get_output_embeddings())}
    parameters = [parameter for parameter in model.parameters() if id(parameter) not in embeddings]
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return sum(parameter.numel() for parameter in parameters), trained, config.num_hidden_layers * config.num_attention_heads * head
