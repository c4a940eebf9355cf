"""Training tokens per second of a step over those of TRL and Hugging Face's ``Trainer``, on records
of real lengths.

usage: python tests/bench/training_throughput.py [--quick]        (--quick: four sides, one
micro-batch size each, one short round)

All sides train the same random Llama (its head has the share of the parameters that it has in a
model of 1.5 B) with the same records, already tokens, prompts masked; the same AdamW, rate,
clipping and threads, and about 64 records (or their tokens) per optimizer step. What counts are
tokens of records, prompts included and padding not, per second of wall clock. Sides:

- ours: ``Trainer.step`` with constant shares, attention as the device has it by default (``padded``
on CPUs);
- trl_packing: ``SFTTrainer``, best-fit-decreasing packing into rows that hold the longest record;
  trl_padding_free: its rows without padding; both with SDPA and the block mask that transformers
  makes of position ids: TRL asks for flash attention, which CPUs lack. trl_grouped is the same
  trainer with padded batches of like length;
- hf_grouped, hf_rebalance: ``Trainer`` with ``train_sampling_strategy`` ``group_by_length`` (its
  steps are not random samples: records of like length share a step) and ``batch_rebalance`` (like
  ours it groups within the step);
- hf_padded: ``Trainer``, random batches padded to their longest record, as the paper's release
trains.

Every side has its own fastest micro-batch size, found before the rounds among those in
``CANDIDATES``. Sides live in processes of their own and take turns of a few steps; their first
steps do not count. TRL is no dependency of the project: ``pip install --target /tmp/trl trl
--no-deps``, and ``PYTHONPATH=/tmp/trl`` (or $VERSATUNE_TRL) for this bench.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import common
import training

sys.path.append(os.environ.get("VERSATUNE_TRL", "/tmp/trl"))

MAX_LENGTH, RECORDS, BATCH = 1024, 400, 64
SHAPE = {
    "vocabulary": 2048,
    "hidden": 256,
    "layers": 4,
    "heads": 8,
    "intermediate": 688,
    "context": MAX_LENGTH,
}
RATE = 1e-4
# nine steps: one cycle of group_by_length, from its longest records to its shortest
ROUNDS, STEPS, WARM = 5, 9, 3
QUICK = {"rounds": 1, "steps": 2, "warm": 1}
QUICK_SIDES = ("ours", "trl_packing", "hf_grouped", "hf_padded")
# ours: tokens per micro-batch; packing: (tokens, rows) of a micro-batch; the others: records per
# micro-batch
CANDIDATES: dict[str, list[Any]] = {
    "ours": [1024, 512, 2048, 8192],
    "trl_packing": [(1024, 1), (1024, 2), (2048, 1)],
    "trl_padding_free": [8, 4, 16],
    "trl_grouped": [8, 4, 16],
    "hf_grouped": [8, 4, 16],
    "hf_rebalance": [8, 4, 16],
    "hf_padded": [4, 8, 2],
}


def ours(given: dict[str, Any]) -> Any:
    import numpy as np
    import torch

    from versatune_ray.settings.recipe import Recipe
    from versatune_ray.training.model import load_model
    from versatune_ray.training.trainer import Trainer

    torch.set_num_threads(given["threads"])
    data = training.read_domains(given["stores"], held_out=1)
    recipe = Recipe(
        steps=10_000,
        batch_size=BATCH,
        micro_batch_tokens=given["micro"],
        learning_rate=RATE,
        warmup=0.03,
        weight_decay=0.0,
        max_grad_norm=1.0,
        seed=0,
    )
    trainer = Trainer(load_model(given["model"]), data, recipe, torch.device("cpu"))
    shares = np.full(len(data), 1 / len(data))
    meter = Meter(given)
    while True:
        trainer.step(shares)
        assert trainer.last is not None
        meter.step(int(trainer.last.lengths.sum()))


def theirs(given: dict[str, Any]) -> Any:
    """Any of the other sides: TRL's trainer or Hugging Face's, with a dataset of ready token ids
    and labels.
    """
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    from versatune_ray.domains import TokenStore

    torch.set_num_threads(given["threads"])
    side, micro = given["side"], given["micro"]
    rows = []
    for path in given["stores"].values():
        store = TokenStore(path)
        rows += [
            (store.tokens(i), np.where(store.mask(i), store.tokens(i), -100))
            for i in range(1, len(store))
        ]
    dataset = Dataset.from_dict(
        {"input_ids": [ids for ids, _ in rows], "labels": [labels for _, labels in rows]}
    )
    if side.endswith(("grouped", "rebalance")):
        dataset = dataset.add_column("length", [len(ids) for ids, _ in rows])
    model = AutoModelForCausalLM.from_pretrained(
        given["model"], dtype=torch.float32, attn_implementation="sdpa"
    )
    model.config.use_cache = False
    strategy = {"grouped": "group_by_length", "rebalance": "batch_rebalance"}.get(
        side.split("_")[-1], "random"
    )
    per_step = BATCH
    per_batch = micro
    if side == "trl_packing":
        length, per_batch = micro
        per_step = max(per_batch, round(BATCH * np.mean([len(ids) for ids, _ in rows]) / length))
    options: dict[str, Any] = {
        "output_dir": given["folder"],
        "use_cpu": True,
        "max_steps": 10_000,
        "per_device_train_batch_size": per_batch,
        "gradient_accumulation_steps": max(1, round(per_step / per_batch)),
        "learning_rate": RATE,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 300,
        "max_grad_norm": 1.0,
        "train_sampling_strategy": strategy,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "gradient_checkpointing": False,  # TRL's default is not Hugging Face's
        "bf16": False,
    }
    if side.startswith("trl"):
        from trl import SFTConfig, SFTTrainer

        more: dict[str, Any] = {
            "trl_packing": {
                "packing": True,
                "packing_strategy": "bfd",
                "max_length": micro[0] if side == "trl_packing" else None,
            },
            "trl_padding_free": {"padding_free": True, "max_length": None},
            "trl_grouped": {"max_length": None},
        }[side]
        tokenizer = _tokenizer(model.config.vocab_size)
        trainer: Any = SFTTrainer(
            model, SFTConfig(**options, **more), train_dataset=dataset, processing_class=tokenizer
        )
    else:
        trainer = Trainer(
            model, TrainingArguments(**options), data_collator=_padded, train_dataset=dataset
        )

    meter, step = Meter(given), trainer.training_step
    counted = 0

    def training_step(model: Any, inputs: dict[str, Any], *more: Any, **named: Any) -> Any:
        nonlocal counted
        counted += int((inputs["input_ids"] != 0).sum())
        return step(model, inputs, *more, **named)

    class Turns(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            nonlocal counted
            counted, tokens = 0, counted
            meter.step(tokens)

    trainer.training_step = training_step
    trainer.add_callback(Turns())
    trainer.train()


def _padded(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Padded on the right to the longest, with the mask that every collator of transformers
    gives.
    """
    import torch

    ids = [torch.tensor(record["input_ids"]) for record in records]
    labels = [torch.tensor(record["labels"]) for record in records]
    grid = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    return {
        "input_ids": grid,
        "labels": torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100),
        "attention_mask": (grid != 0).long(),
    }


def _tokenizer(vocabulary: int) -> Any:
    """SFTTrainer wants one, if only to know the padding token."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"t{place}": place for place in range(vocabulary)}
    backend = Tokenizer(models.WordLevel(words, unk_token="t1"))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="t0", eos_token="t2", bos_token="t1"
    )


class Meter:
    """Counts the steps of a turn and hands over after the last of them."""

    def __init__(self, given: dict[str, Any]):
        self.steps, self.left, self.tokens, self.began = (
            given["steps"],
            given["warm"],
            0,
            time.perf_counter(),
        )

    def step(self, tokens: int) -> None:
        self.tokens += tokens
        self.left -= 1
        if not self.left:
            common.hand_over({"tokens": self.tokens, "seconds": time.perf_counter() - self.began})
            self.left, self.tokens, self.began = self.steps, 0, time.perf_counter()


def parent(quick: bool) -> None:
    rounds, steps, warm = (
        (QUICK["rounds"], QUICK["steps"], QUICK["warm"]) if quick else (ROUNDS, STEPS, WARM)
    )
    sides = list(QUICK_SIDES if quick else CANDIDATES)
    missing = importlib.util.find_spec("trl") is None
    if missing:
        common.note("TRL is not installed: pip install --target /tmp/trl trl --no-deps")
        if not quick:
            raise SystemExit(2)
        sides = [side for side in sides if not side.startswith("trl")]
    threads = os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="vtb") as scratch, ExitStack() as stack:
        folder = Path(scratch)
        domains, records = training.encoded(
            RECORDS // 4 if quick else RECORDS, MAX_LENGTH, SHAPE["vocabulary"]
        )
        lengths = [len(tokens) for domain in domains for tokens, _ in domain]
        shape = training.random_llama(folder / "model", **SHAPE)
        stores = training.write_domains(folder / "stores", domains)
        given = {
            "stores": stores,
            "model": str(folder / "model"),
            "folder": scratch,
            "threads": threads,
            "steps": steps,
            "warm": warm,
        }

        def player(side: str, micro: Any) -> common.Player:
            name = "ours" if side == "ours" else "theirs"
            return common.Player(__file__, name, given | {"side": side, "micro": micro})

        swept: dict[str, dict[str, int]] = {}
        players: dict[str, common.Player] = {}
        for side in sides:
            best = CANDIDATES[side][0]
            if not quick:
                swept[side] = {}
                for micro in CANDIDATES[side]:
                    with player(side, micro) as one:
                        swept[side][str(micro)] = round(_rate(one.turn))
                best = max(CANDIDATES[side], key=lambda micro: swept[side][str(micro)])
                common.note(f"{side}: {swept[side]} tokens/s by micro-batch")
            players[side] = stack.enter_context(player(side, best))
            swept.setdefault(side, {"chosen": str(best)} if quick else {})  # type: ignore[dict-item]
        rates: dict[str, list[float]] = {side: [] for side in sides}
        for number in range(rounds):
            for side in sides if number % 2 == 0 else sides[::-1]:
                rates[side].append(_rate(players[side].turn))
            common.note(
                f"round {number + 1}: "
                + ", ".join(f"{side} {rates[side][-1]:,.0f}" for side in sides)
            )

    median = {side: statistics.median(found) for side, found in rates.items()}
    fastest = max(
        (side for side in sides if side not in ("ours", "hf_padded")), key=median.__getitem__
    )
    detail = {
        "unit": "tokens of records/s",
        "records": records,
        "mean_and_longest": [round(statistics.mean(lengths), 1), max(lengths)],
        "model": shape,
        "threads": threads,
        "steps_per_turn": steps,
        "tokens_per_s": {side: round(rate) for side, rate in median.items()},
        "swept": swept,
        "trl": "not installed, left out: pip install --target /tmp/trl trl --no-deps"
        if missing
        else _version(),
    } | common.machine()
    for name, other, goal in (
        ("training_throughput", fastest, 1.0),
        ("training_throughput_padded", "hf_padded", 1.3),
    ):
        ratios = [mine / theirs for mine, theirs in zip(rates["ours"], rates[other], strict=True)]
        common.report(name, ratios, goal, {"over": other} | detail)


def _rate(turn: Callable[[], Any]) -> float:
    found = turn()
    return float(found["tokens"] / found["seconds"])


def _version() -> str:
    from importlib.metadata import version

    return version("trl")


if __name__ == "__main__":
    common.run(__doc__, parent, {"ours": ours, "theirs": theirs})
