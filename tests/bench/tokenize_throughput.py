"""Records tokenised over ``datasets.map(batched=True)``, one thread each, goal ≥ 1.0.

Ours: JSONL lines → a token store on disk (read, recognised, rendered, tokenised, masked, hashed,
written). Theirs: the same records, loaded before the clock starts → token ids in an Arrow file by
the tokenizer's own batch call, without a mask; of chats after ``apply_chat_template``. ``raw text``
needs no mask on our side either, ``chats`` are ours with masks. What ours takes for two records
does not count, as their tokenizer is loaded before the clock starts too. Counted are CPU seconds,
which say the same on a busy machine; the detail has the clock's, and theirs with loading. Texts are
those of Python's own help, the tokenizer is a byte-level BPE of 8,000 words trained on them.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import common

_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _clock() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def _spent(began: tuple[float, float]) -> list[float]:
    return [now - then for now, then in zip(_clock(), began, strict=True)]


def ours(given: dict[str, Any]) -> None:
    from versatune_ray.domains.tokenizing import build_stores
    from versatune_ray.settings.loading import parse

    while True:
        figures = {}
        for kind in ("few", "text", "chat"):
            config = parse(
                {"model": {"path": "x"}, "domains": dict.fromkeys("ab", given[kind])}
            )  # one store: two domains of the same sources share it
            cache = Path(tempfile.mkdtemp())
            began = _clock()
            build_stores(config, config.domains, given["tokenizer"], cache, distributed=False)
            spent = _spent(began)
            few = figures.get("few", [0, 0])
            figures[kind] = [all_of_it - start for all_of_it, start in zip(spent, few, strict=True)]
            shutil.rmtree(cache)
        common.hand_over(figures)


def theirs(given: dict[str, Any]) -> None:
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(given["tokenizer"])

    def text(batch: Any) -> Any:
        return {"input_ids": tokenizer(batch["text"])["input_ids"]}

    def chat(batch: Any) -> Any:
        shown = tokenizer.apply_chat_template(batch["messages"], tokenize=False)
        return {"input_ids": tokenizer(shown, add_special_tokens=False)["input_ids"]}

    while True:
        figures = {}
        for kind, function in (("text", text), ("chat", chat)):
            cache, began = tempfile.mkdtemp(), _clock()
            rows = datasets.load_dataset(
                "json", data_files=given[kind], split="train", cache_dir=cache
            )
            loading = _spent(began)
            began = _clock()
            rows.map(
                function,
                batched=True,
                remove_columns=rows.column_names,
                load_from_cache_file=False,
                new_fingerprint=f"{time.time_ns():x}",
            )
            figures[kind] = [*_spent(began), *loading]
            shutil.rmtree(cache)
        common.hand_over(figures)


def _write(folder: Path, count: int) -> dict[str, Any]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    parts = [part for text in topics.values() for part in text.split("\n\n") if part.strip()]
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learned.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=8000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    learned.train_from_iterator(parts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=learned, eos_token="<|im_end|>")
    tokenizer.chat_template = _TEMPLATE
    tokenizer.save_pretrained(folder / "tokenizer")
    draw, given = random.Random(7), {"tokenizer": str(folder / "tokenizer")}
    for kind in ("text", "chat"):
        given[kind] = str(folder / f"{kind}.jsonl")
        with Path(given[kind]).open("w") as file:
            for number in range(count):
                asked, answer = f"{number}: {draw.choice(parts)[:200]}", draw.choice(parts)
                said = [
                    {"role": "user", "content": asked},
                    {"role": "assistant", "content": answer},
                ]
                row = {"text": f"{asked}\n{answer}"} if kind == "text" else {"messages": said}
                file.write(json.dumps(row) + "\n")
    given["few"] = str(folder / "few.jsonl")
    Path(given["few"]).write_text('{"text": "one"}\n{"text": "another"}\n')
    return given


def parent(quick: bool) -> None:
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    count = 500 if quick else 3000
    with tempfile.TemporaryDirectory() as name:
        given = _write(Path(name), count)
        rounds = []
        with (
            common.Player(__file__, "ours", given) as one,
            common.Player(__file__, "theirs", given) as other,
        ):
            rounds += [(one.turn(), other.turn()) for _ in range(1 if quick else 5)]
    for kind, what in (("text", "raw text"), ("chat", "chats, with masks")):
        pairs = [(a[kind], b[kind]) for a, b in rounds]
        detail = {
            "records per CPU second": round(count / statistics.median(a[0] for a, _ in pairs)),
            "theirs": round(count / statistics.median(b[0] for _, b in pairs)),
            "start, seconds": round(statistics.median(a["few"][0] for a, _ in rounds), 3),
            "by the clock": round(statistics.median(b[1] / a[1] for a, b in pairs), 2),
            "theirs with loading": round(
                statistics.median((b[0] + b[2]) / a[0] for a, b in pairs), 2
            ),
        }
        ratios = [b[0] / a[0] for a, b in pairs]
        common.report(f"tokenize_throughput, {what}", ratios, 1.0, detail | common.machine())


if __name__ == "__main__":
    common.run(__doc__, parent, {"ours": ours, "theirs": theirs})
