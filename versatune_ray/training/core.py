"""The training core, without Ray: one model, one optimizer that never restarts, global batches drawn by share.

Loss is per response token: summed over the global batch and divided by the global token count, across ranks and micro-batches.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, PreTrainedModel, get_cosine_schedule_with_warmup

from versatune_ray.domains import DomainData, Records
from versatune_ray.errors import UserError
from versatune_ray.mixture import DomainSampler
from versatune_ray.training.recipe import LossSums, Recipe

Array = NDArray[np.float64]
IGNORE = -100


class ResponseLoss(nn.Module):
    """Negative log-likelihood of response tokens only, so that logits exist only where there is a loss."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """``tokens`` and next-token ``targets``, int64 [rows, length]; returns nats [number of targets ≠ IGNORE], row by row."""
        hidden = self.model.get_decoder()(input_ids=tokens).last_hidden_state
        kept = targets != IGNORE
        logits = self.model.get_output_embeddings()(hidden[kept])
        return functional.cross_entropy(logits.float(), targets[kept], reduction="none")


class Tuner:
    """One rank of a training run: ``step`` with shares, ``held_out`` to measure, ``save`` and ``load`` to resume exactly."""

    def __init__(
        self, model: PreTrainedModel, data: Sequence[DomainData], recipe: Recipe, device: torch.device, rank: int = 0, world: int = 1
    ):
        if recipe.batch_size < world:
            raise UserError(f"training.batch_size: {recipe.batch_size} samples cannot be spread over {world} workers")
        self.data, self.recipe, self.device, self.rank, self.world = list(data), recipe, device, rank, world
        self.model = model.to(device)
        loss = ResponseLoss(self.model)
        self._loss: nn.Module = DistributedDataParallel(loss) if world > 1 else loss
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=device.type == "cuda"
        )
        self.schedule = get_cosine_schedule_with_warmup(self.optimizer, math.ceil(recipe.warmup * recipe.steps), recipe.steps)
        names = [domain.name for domain in data]
        self.sampler = DomainSampler([len(domain.train) for domain in data], recipe.batch_size, recipe.seed, names=names)
        self.steps_done = 0
        # Since the last adjustment: this rank's training loss, and every rank's samples and response tokens per domain.
        self.train_loss = LossSums.zeros(len(names))
        self.samples = np.zeros(len(names), dtype=np.int64)
        self.tokens = np.zeros(len(names), dtype=np.int64)

    def step(self, shares: Array) -> float:
        """One optimizer step on one global batch; returns this rank's mean loss in nats per response token."""
        self._loss.train()
        domain, index = self.sampler.next_batch(shares)
        tokens = np.array([self.data[d].train.response_tokens[i] for d, i in zip(domain, index, strict=True)])
        np.add.at(self.samples, domain, 1)
        np.add.at(self.tokens, domain, tokens)
        # Contiguous slices: the sampler spreads every domain evenly along the batch.
        mine = slice(len(domain) * self.rank // self.world, len(domain) * (self.rank + 1) // self.world)
        domain, index = domain[mine], index[mine]
        scale = self.world / tokens.sum()  # DDP averages over ranks; the loss is a sum over the global batch

        batches = list(self._micro_batches([(d, self.data[d].train, i) for d, i in zip(domain, index, strict=True)]))
        sums = LossSums.zeros(len(self.data))
        for place, batch in enumerate(batches):
            if isinstance(self._loss, DistributedDataParallel):
                self._loss.require_backward_grad_sync = place == len(batches) - 1
            nats = self._forward(batch)
            (nats.sum() * scale).backward()  # type: ignore[no-untyped-call]
            sums += self._sums(batch, nats)
        if self.recipe.max_grad_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.max_grad_norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.train_loss += sums
        self.steps_done += 1
        return float(sums.nats.sum() / max(1, tokens[mine].sum()))

    @torch.no_grad()
    def held_out(self, progress: Callable[[int], None] = lambda records: None) -> LossSums:
        """This rank's part of every domain's validation records; the sum over ranks is the whole."""
        self._loss.eval()
        mine = [
            (d, domain.validation, i) for d, domain in enumerate(self.data) for i in range(self.rank, len(domain.validation), self.world)
        ]
        sums = LossSums.zeros(len(self.data))
        for batch in self._micro_batches(mine):
            # Not through DDP: ranks may have different numbers of micro-batches.
            sums += self._sums(batch, self._forward(batch, wrapped=False))
            progress(len(batch.rows))
        return sums

    def take_counts(self) -> tuple[LossSums, NDArray[np.int64], NDArray[np.int64]]:
        """Training loss, samples and response tokens per domain since the last call; starts them anew."""
        taken = self.train_loss, self.samples.copy(), self.tokens.copy()
        self.train_loss = LossSums.zeros(len(self.data))
        self.samples[:] = 0
        self.tokens[:] = 0
        return taken

    def save(self, folder: Path) -> None:
        """Write this rank's part of a checkpoint: rank 0 model, optimizer, schedule, sampler; every rank its random state."""
        folder.mkdir(parents=True, exist_ok=True)
        random = {"cpu": torch.get_rng_state()} | ({"cuda": torch.cuda.get_rng_state(self.device)} if self.device.type == "cuda" else {})
        counts = {"nats": self.train_loss.nats.tolist(), "count": self.train_loss.count.tolist()}
        torch.save(random, folder / f"random-{self.rank}.pt")
        (folder / f"train_loss-{self.rank}.json").write_text(json.dumps(counts))
        if self.rank:
            return
        self.model.save_pretrained(folder / "model")
        torch.save({"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()}, folder / "optimizer.pt")
        state = {
            "step": self.steps_done,
            "sampler": self.sampler.state_dict(),
            "samples": self.samples.tolist(),
            "tokens": self.tokens.tolist(),
        }
        (folder / "sampler.json").write_text(json.dumps(state))

    def load(self, folder: Path) -> None:
        """Go on from ``save``; the weights are expected to be loaded from ``folder/model`` already. Nothing is unpickled."""
        stored = torch.load(folder / "optimizer.pt", map_location=self.device, weights_only=True)
        self.optimizer.load_state_dict(stored["optimizer"])
        self.schedule.load_state_dict(stored["schedule"])
        state = json.loads((folder / "sampler.json").read_text())
        self.sampler.load_state_dict(state["sampler"])
        self.steps_done = state["step"]
        self.samples[:] = state["samples"]
        self.tokens[:] = state["tokens"]
        if (folder / f"random-{self.rank}.pt").is_file():  # absent when there are more workers now than before
            random = torch.load(folder / f"random-{self.rank}.pt", map_location="cpu", weights_only=True)
            torch.set_rng_state(random["cpu"])
            if "cuda" in random and self.device.type == "cuda":
                torch.cuda.set_rng_state(random["cuda"], self.device)
        # With fewer workers than before, the last ranks' sums go to those that are left.
        for file in sorted(folder.glob("train_loss-*.json")):
            if int(file.stem.rpartition("-")[2]) % self.world == self.rank:
                counts = json.loads(file.read_text())
                self.train_loss += LossSums(np.array(counts["nats"]), np.array(counts["count"]))

    def _forward(self, batch: _MicroBatch, wrapped: bool = True) -> torch.Tensor:
        tokens, targets = batch.tensors()
        module = self._loss if wrapped else (self._loss.module if isinstance(self._loss, DistributedDataParallel) else self._loss)
        with torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
            return module(tokens.to(self.device), targets.to(self.device))  # type: ignore[no-any-return]

    def _sums(self, batch: _MicroBatch, nats: torch.Tensor) -> LossSums:
        sums = LossSums.zeros(len(self.data))
        np.add.at(sums.nats, np.repeat(batch.domain, batch.response_tokens), nats.detach().double().cpu().numpy())
        np.add.at(sums.count, batch.domain, batch.response_tokens if self.recipe.unit == "nats/token" else batch.response_bytes)
        return sums

    def _micro_batches(self, samples: Sequence[tuple[int, Records, int]]) -> Iterator[_MicroBatch]:
        """Samples of like length together, at most ``micro_batch_tokens`` padded tokens each; a pure function of the samples."""
        lengths = np.array([records.lengths[i] for _, records, i in samples])
        rows: list[tuple[int, Records, int]] = []
        longest = 0
        for place in np.argsort(lengths, kind="stable"):
            if rows and max(longest, lengths[place]) * (len(rows) + 1) > self.recipe.micro_batch_tokens:
                yield _MicroBatch(rows)
                rows, longest = [], 0
            rows.append(samples[place])
            longest = max(longest, int(lengths[place]))
        if rows:
            yield _MicroBatch(rows)


class _MicroBatch:
    def __init__(self, rows: Sequence[tuple[int, Records, int]]):
        self.rows = rows
        self.domain = np.array([domain for domain, _, _ in rows])
        self.response_tokens = np.array([records.response_tokens[i] for _, records, i in rows])
        self.response_bytes = np.array([records.response_bytes[i] for _, records, i in rows])

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Right-padded token ids and next-token targets, int64 [rows, longest]. Causal attention never looks at the padding."""
        samples = [records[i] for _, records, i in self.rows]
        longest = max(len(tokens) for tokens, _ in samples)
        tokens_out = np.zeros((len(samples), longest), dtype=np.int64)
        targets = np.full((len(samples), longest), IGNORE, dtype=np.int64)
        for row, (tokens, mask) in enumerate(samples):
            tokens_out[row, : len(tokens)] = tokens
            targets[row, : len(tokens) - 1] = np.where(mask[1:], tokens[1:], IGNORE)
        return torch.from_numpy(tokens_out), torch.from_numpy(targets)


def load_model(path: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """A causal language model in float32 (mixed precision is the forward pass's business).

    Raises:
        UserError: it cannot be loaded, or it changes its logits after the output embedding, which ``ResponseLoss`` does not know.
    """
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be loaded as a causal language model: {' '.join(str(error).split())}") from None
    for name in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
        if getattr(model.config, name, None) not in (None, 1, 1.0):
            raise UserError(
                f"{path}: models that change their logits ({name} in config.json) are not supported; Llama, Qwen and Mistral are"
            )
    return model
