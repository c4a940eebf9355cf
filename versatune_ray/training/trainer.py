"""The training core, without Ray: one model, one optimizer that never restarts, global batches
drawn by share.

Loss is per response token: summed over the global batch and divided by the global token count,
across ranks and micro-batches; ``Recipe.length_correction`` weighs domains apart from the length of
their answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from versatune_ray.domains import DomainData, longest
from versatune_ray.errors import UserError
from versatune_ray.mixture import LossSums, fixed_subset
from versatune_ray.settings.recipe import Execution, Recipe
from versatune_ray.training import optimizer
from versatune_ray.training.ahead import ShardsAhead
from versatune_ray.training.attention import kind_of
from versatune_ray.training.batches import Layout, MicroBatch, Samples
from versatune_ray.training.families import check_positions
from versatune_ray.training.loss import ResponseLoss
from versatune_ray.training.model import in_precision, model_size
from versatune_ray.training.nonfinite import find_not_finite
from versatune_ray.training.order import sampler_of
from versatune_ray.training.parallel import Parallel
from versatune_ray.training.retention import KLToBase, L2ToBase
from versatune_ray.training.step import (
    Array,
    Drawn,
    StepStats,
    Unrecoverable,
    token_weights,
)
from versatune_ray.training.trainable import SoftMask


class Trainer:
    """One rank of a training run: ``step`` with shares, ``held_out`` to measure,
    ``Checkpoints.save`` and ``load`` to resume exactly.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        data: Sequence[DomainData],
        recipe: Recipe,
        device: torch.device,
        rank: int = 0,
        world: int = 1,
        execution: Execution = Execution(),  # noqa: B008 - frozen
        records: Sequence[int] | None = None,
        importance: Mapping[str, torch.Tensor] | None = None,
        base: PreTrainedModel | None = None,
    ):
        """``model``: of ``load_model``, an ``empty`` one only under FSDP. ``base``: the same again,
        where ``recipe.kl`` asks for it and there are no adapters.
        """
        if recipe.batch_size < world:
            raise UserError(
                f"training.batch_size: {recipe.batch_size} samples cannot be spread over {world} "
                f"workers"
            )
        self.data, self.device, self.rank, self.world = list(data), device, rank, world
        self.model = model
        self.attention = kind_of(model)
        check_positions(model.config, max(map(longest, self.data)), model.name_or_path)
        parameters, _, width = model_size(model)
        low = torch.bfloat16 if execution.in_bf16(device.type) else torch.float32
        in_precision(
            model,
            frozen=low,
            trained=torch.bfloat16 if recipe.optimizer == "adamw_bf16" else torch.float32,
        )
        self.parallel = Parallel(
            ResponseLoss(model, execution.compiles(device.type)), execution, device, rank, world
        )
        gpu = device.type == "cuda"
        self._layout = Layout(
            self.attention, parameters, width, world, rank, self.parallel.in_step, pinned=gpu
        )
        self._mask = SoftMask(self.parallel.module, importance) if importance else None
        self._kl = (
            KLToBase(recipe, self.data, self.parallel, self._layout, execution, base)
            if recipe.kl
            else None
        )
        self._l2 = L2ToBase(self.parallel.module, recipe.l2) if recipe.l2 else None
        self.remember_base()
        # While the device works on a step, a thread makes the batches of the next one.
        self._thread = (
            ThreadPoolExecutor(1, "batches", torch.cuda.set_device, (device,)) if gpu else None
        )
        self._next: Future[Drawn] | None = None
        self._shards = ShardsAhead([domain.train for domain in self.data])
        self.begin(recipe, records)
        self.steps_done = 0
        self.skipped = 0  # batches in a row that were left out
        # steps done, and a half more while this rank waits for the others' gradients
        self.reached = 0.0
        self.last: StepStats | None = None
        # Since the last adjustment: this rank's training loss, and every rank's samples and
        # response tokens per domain (all tokens, where shares count these).
        self.train_loss = LossSums.zeros(len(self.data))
        self.samples = np.zeros(len(self.data), dtype=np.int64)
        self.tokens = np.zeros(len(self.data), dtype=np.int64)

    def remember_base(self) -> None:
        """The weights that are there now are the base's; once an ``empty`` model is filled."""
        if self._l2 is not None:
            self._l2.remember()

    def begin(
        self, recipe: Recipe, records: Sequence[int] | None = None, *, fresh: bool = True
    ) -> None:
        """Go on with the same weights by another recipe, on ``records`` of each domain's training
        records, [k] (None: all of them).

        Which records these are depends on their number and the seed alone. Unless ``fresh``,
        optimizer and schedule go on.
        """
        self.recipe = recipe
        if fresh:
            self.optimizer = optimizer.build(self.parallel.module, recipe)
            self.scheduled = 0  # steps of the schedule so far
            if self._mask is not None:
                self._mask.attach(self.optimizer)
        sizes = [len(domain.train) for domain in self.data]
        self._counts = sizes if records is None else list(records)
        parts = enumerate(zip(sizes, self._counts, strict=True))
        self._chosen = [
            None if count == size else fixed_subset(size, count, recipe.seed, domain)
            for domain, (size, count) in parts
        ]
        self.sampler = sampler_of(recipe, self.data, self._chosen)

    def step(self, shares: Array, ahead: bool = False) -> float:
        """One optimizer step on one global batch; returns the mean loss of all ranks in nats per
        response token (or byte).

        ``ahead``: the next call is another step with the same shares, and nothing asks for the
            sampler in between.

        Raises:
            Unrecoverable: on every rank, before the weights change.
        """
        waiting, self._next = self._next, None
        try:
            drawn = waiting.result() if waiting is not None else self._draw(shares)
        except ValueError as error:
            raise Unrecoverable(
                f"step {self.steps_done + 1}: {error}; the last checkpoint is intact"
            ) from error
        if ahead and self._thread is not None:
            self._next = self._thread.submit(self._draw, shares)
        # before the others, with which its gradient is reduced
        terms = {"kl_to_base": self._kl.backward(self.recipe, self.steps_done)} if self._kl else {}
        sums = self._backward(drawn.batches)
        whole = self.parallel.total(torch.cat([sums, *(one[None] for one in terms.values())]))
        if self._l2:
            terms["distance_to_base"] = self._l2.add_gradient(self.parallel)
            whole = torch.cat([whole, terms["distance_to_base"].double()[None]])
        norm = self.parallel.gradient_norm(self._mask.scales if self._mask else ())
        self._clip(norm)
        # all that the host waits for in a step
        read = torch.cat([sums, whole, norm.double()[None]]).cpu().numpy()
        k = len(self.data)
        named = dict(zip(terms, map(float, read[2 * k : -1]), strict=True))
        self._account(drawn, read[:k], read[k : 2 * k], float(read[-1]), named)
        assert self.last is not None
        return self.last.loss

    def records_of(self, domain: int) -> int:
        """Records of a domain that this recipe draws from."""
        return self._counts[domain]

    def gradient(self, samples: Samples, weights: Array) -> list[torch.Tensor]:
        """Of the loss of ``samples``, the same on every rank, taken to the host; ``weights``: of a
        response token of each domain, [k].
        """
        self._backward(self._batches(samples, weights))
        return self.parallel.take_gradients()

    @torch.no_grad()
    def held_out(self, progress: Callable[[int], None] = lambda records: None) -> LossSums:
        """This rank's part of every domain's validation records; the sum over ranks is the
        whole.
        """
        self.parallel.module.eval()
        sizes = [len(domain.validation) for domain in self.data]
        domain = np.repeat(np.arange(len(sizes)), sizes)
        samples = Samples(
            [data.validation for data in self.data],
            domain,
            np.concatenate([np.arange(size) for size in sizes]),
        )
        sums, count = self._zeros(), np.zeros(len(self.data))
        for batch in self._batches(samples, None):
            moved = batch.to(self.device)
            moved.add_to(sums, self.parallel.forward(moved.inputs, train=False))
            count += self._count(batch.samples)
            progress(len(batch.samples))
        return LossSums(sums.cpu().numpy(), count)

    def take_counts(self) -> tuple[LossSums, NDArray[np.int64], NDArray[np.int64]]:
        """Training loss, samples and tokens per domain since the last call; starts them anew."""
        taken = self.train_loss, self.samples.copy(), self.tokens.copy()
        self.train_loss = LossSums.zeros(len(self.data))
        self.samples[:] = 0
        self.tokens[:] = 0
        return taken

    def _draw(self, shares: Array) -> Drawn:
        """The next global batch."""
        self._shards.follow(self.sampler)
        samples = self.training_samples(*self.sampler.next_batch(shares))
        weights = token_weights(samples, len(self.data), self.recipe.length_correction)
        return Drawn(samples, self._batches(samples, weights))

    def training_samples(self, domain: NDArray[np.int64], index: NDArray[np.int64]) -> Samples:
        """Some of the records that the domains train on, in this recipe's counting."""
        rows = index.copy()
        for number, records in enumerate(self._chosen):
            if records is not None:
                rows[domain == number] = records[index[domain == number]]
        return Samples([data.train for data in self.data], domain, rows)

    def _batches(self, samples: Samples, weights: Array | None) -> list[MicroBatch]:
        """This rank's micro-batches; ``weights``: of a response token of each domain in the loss,
        [k].
        """
        # Gradients are averaged over ranks; the loss is a sum over the global batch.
        return self._layout.micro_batches(
            samples,
            None if weights is None else self.world * weights,
            self.recipe.micro_batch_tokens,
        )

    def _backward(self, batches: Sequence[MicroBatch]) -> torch.Tensor:
        """Add up the gradient of the loss; returns this rank's nats per domain [k], on the
        device.
        """
        self.parallel.module.train()
        sums = self._zeros()
        self.reached = float(self.steps_done)
        for number, batch in enumerate(batches):
            moved, last = batch.to(self.device), number == len(batches) - 1
            with self.parallel.backward(last):
                loss, nats = self.parallel.forward(moved.inputs, train=True)
                self.reached += last / 2
                loss.backward()
            moved.add_to(sums, nats)
        return sums

    def _clip(self, norm: torch.Tensor) -> None:
        if self.recipe.max_grad_norm:
            self.parallel.scale_gradient((self.recipe.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))

    def _account(
        self, drawn: Drawn, nats: Array, whole: Array, norm: float, terms: Mapping[str, float]
    ) -> None:
        """The end of a step: move the weights, or leave them, and count what it was made of.

        Args:
            nats: of this rank, per domain [k]; whole: of all ranks. terms: see ``StepStats``.

        Raises:
            Unrecoverable: the gradient is not finite.
        """
        samples = drawn.samples
        lengths, responses = samples.lengths, samples.response_tokens
        rate = optimizer.learning_rate(self.recipe, self.scheduled)
        skipped, count = None, self._count(samples)
        if math.isfinite(norm):
            optimizer.set_learning_rate(self.optimizer, rate)
            self.optimizer.step()
            self.skipped = 0
            mine = np.sum([self._count(batch.samples) for batch in drawn.batches], axis=0)
            self.train_loss += LossSums(nats, mine)
        else:
            found = find_not_finite(drawn, nats, self.data, self._layout, self.parallel)
            skipped = f"step {self.steps_done + 1}: {found}"
            self.skipped += 1
            if self.recipe.on_nonfinite == "stop":
                raise Unrecoverable(f"{skipped}; the last checkpoint is intact")
            if self.skipped > self.recipe.max_skipped:
                raise Unrecoverable(
                    f"{skipped}; {self.recipe.max_skipped} batches before it were left out "
                    f"already; the last checkpoint is intact"
                )
            whole, count = np.zeros_like(whole), np.zeros_like(count)
        self.optimizer.zero_grad(set_to_none=True)
        self.last = StepStats(lengths, responses, whole, count, norm, rate, skipped, terms)
        k = len(self.data)
        self.samples += np.bincount(samples.domain, minlength=k)
        counted = lengths if self.recipe.counted == "all" else responses
        self.tokens += np.bincount(samples.domain, counted, k).astype(np.int64)
        self.steps_done += 1
        self.scheduled += 1

    def _zeros(self) -> torch.Tensor:
        """Nats per domain, summed on the device so that nothing waits for it. MPS and others
        without float64 are not supported.
        """
        return torch.zeros(len(self.data), dtype=torch.float64, device=self.device)

    def _count(self, samples: Samples) -> Array:
        """What the nats of each domain are divided by, [k]."""
        counted: Array = np.bincount(
            samples.domain, samples.counted(self.recipe.unit), len(self.data)
        ).astype(np.float64)
        return counted
