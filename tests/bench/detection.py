"""What the detection benches share: tiny random models, and the product's two stages over them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONTEXT = 512
TEXT_TOKENS = 62  # what the tiny judge is shown of a text
# large beside all other coordinates, so that it has nearly the whole length that the last norm
# gives
_COMMON = 8.0


def tiny_models(folder: Path) -> dict[str, str]:
    """Random models of the tiny base's shape: ``long`` never ends a sequence, ``short`` does after
    29 tokens on average, ``judge`` answers any text with a letter and EOS. Seconds instead of
    minutes, and for their speed it does not matter what they say.

    The chance of EOS comes from one coordinate that all embeddings share, so that every hidden
    state has it, and the weight that the head gives it; the judge has a second one for "the last
    token was a letter".
    """
    import math

    import torch

    from versatune_ray.microworld.tiny import _llama, train_tokenizer
    from versatune_ray.settings import MICROWORLD as DOMAINS
    from versatune_ray.settings import Base, World

    settings, world = Base(), World(100)
    tokenizer = train_tokenizer(
        (text for name in DOMAINS for text in world.texts(name, 300)),
        settings.vocab_size,
        len(DOMAINS),
    )
    tokenizer.model_max_length = CONTEXT
    letters = [tokenizer.encode(f" {letter}", add_special_tokens=False)[0] for letter in "ABCDEF"]
    eos, size, scale = tokenizer.eos_token_id, len(tokenizer), math.sqrt(settings.hidden_size)
    paths = {}
    for name in ("long", "short", "judge"):
        torch.manual_seed(0)
        model = _llama(settings, tokenizer)
        with torch.no_grad():
            model.config.tie_word_embeddings = False
            embedding = model.model.embed_tokens.weight
            embedding[:, :2] = torch.tensor([_COMMON, 0.0])
            head = embedding.clone()
            head[:, :2] = 0.0
            if name == "long":
                head[eos, 0] = -30 / scale
            if name == "short":
                head[eos, 0] = math.log(size / 28) / scale
            if name == "judge":
                embedding[letters, :2] = torch.tensor([0.0, _COMMON])
                head[letters, 0] = 20 / scale
                head[eos, :2] = torch.tensor([-20.0, 20.0]) / scale
            model.lm_head.weight = torch.nn.Parameter(head)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        paths[name] = str(folder / name)
    return paths


def generation_source(
    model: str, folder: Path, generation: Mapping[str, Any], engine: Mapping[str, Any]
) -> Any:
    """What ``versatune_ray.detection.generate.generate`` takes, for a model of ``tiny_models``."""
    from versatune_ray.detection.generate import Generator, start_token
    from versatune_ray.settings import Engine, Generation

    settings = Generation(**generation)
    start, how = start_token(model, settings.start, False)
    return Generator(
        "bench", model, "bench", start, how, settings, 0, Engine(**engine), folder, False
    )


def judge_source(model: str, engine: Mapping[str, Any]) -> Any:
    """What ``versatune_ray.detection.judge.judge`` takes; prompt and length of text as the tiny
    judge has them.
    """
    from versatune_ray.detection.judge_spec import JudgeSpec
    from versatune_ray.detection.prompt import TINY_JUDGE_PROMPT, Question
    from versatune_ray.settings import MICROWORLD as DOMAINS
    from versatune_ray.settings import Engine, Judge

    question = Question(DOMAINS, {}, TINY_JUDGE_PROMPT, "letters", True)
    settings = Judge(
        path=model, prompt=TINY_JUDGE_PROMPT, max_text_tokens=TEXT_TOKENS, engine=Engine(**engine)
    )
    return JudgeSpec(settings, question, "bench", False, False)


def note_arrivals(module: Any, file: Path) -> None:
    """Have the vLLM stage of ``module`` append to ``file`` when each request entered the engine, as
    vLLM itself recorded it.
    """
    stage = module.vllm_stage

    def noting(model: str, settings: Any, preprocess: Any, postprocess: Any, **more: Any) -> Any:
        def noted(row: dict[str, Any]) -> dict[str, Any]:
            # tens of microseconds, and one write per line
            with file.open("a", encoding="utf-8") as stream:
                stream.write(f"{row['metrics']['arrival_time']}\n")
            return dict(postprocess(row))

        return stage(model, settings, preprocess, noted, **more)

    module.vllm_stage = noting


def window(arrivals: Path, parts: Path) -> tuple[float, float]:
    """From the first request in the engine to the last part on disk, wall clock."""
    begin = min(float(line) for line in arrivals.read_text(encoding="utf-8").split())
    return begin, max(part.stat().st_mtime for part in parts.glob("*.parquet"))


def tokens_in(parts: Path) -> tuple[int, int]:
    """Sequences and output tokens written; a failed request ends the bench."""
    import pyarrow.dataset

    table = pyarrow.dataset.dataset(
        sorted(map(str, parts.glob("*.parquet"))), format="parquet"
    ).to_table(columns=["tokens", "failed"])
    if any(table["failed"].to_pylist()):
        raise RuntimeError(f"{sum(table['failed'].to_pylist())} requests failed")
    return table.num_rows, sum(table["tokens"].to_pylist())
