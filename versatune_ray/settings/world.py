"""Keys of what can be made here: the embedded microworld, and tiny models over it or over your own
texts.
"""

from __future__ import annotations

from versatune_ray.settings.common import MOST_SAMPLES, MOST_SEED, Paths, Section, Shares, setting

# domains of the embedded world
MICROWORLD = ("law", "medicine", "finance", "science", "code", "general")


class Base(Section):
    """A tiny base model and judge, pre-trained here: the embedded microworld, or your own corpora
    (no hub needed).
    """

    corpora: dict[str, Paths] = setting(
        dict,
        "text corpora per domain (files with a `text` field, or plain .txt); none: the "
        "microworld's own",
        path=True,
    )
    mixture: Shares = setting(
        dict, "share of pre-training rows per domain; none: the microworld's, or uniform"
    )
    rows: int = setting(36_000, "pre-training rows, each BOS + one text", "rows", ge=1)
    row_tokens: int = setting(
        64, "longest pre-training row, and the context the tiny models are made for", "tokens", ge=8
    )
    vocab_size: int = setting(
        2048, "byte-pair vocabulary, trained on the corpora", "tokens", ge=300
    )
    hidden_size: int = setting(
        128, "width of the tiny Llama (a multiple of 32)", ge=32, multiple_of=32
    )
    layers: int = setting(4, "depth of the tiny Llama", ge=1)
    context: int = setting(512, "positions of the tiny Llama", "tokens", ge=16)
    batch_size: int = setting(64, "rows per optimizer step", "rows", ge=1, le=MOST_SAMPLES)
    learning_rate: float = setting(3e-3, "peak rate; cosine to zero", gt=0)
    held_out: float = setting(
        0.02, "share of the corpora kept from both models, to measure the judge on", ge=0, lt=1
    )
    judge_rows: int = setting(
        9_000, "labelled rows that the tiny judge is trained on; 0: no judge", "rows", ge=0
    )
    judge_noise: float = setting(
        0.1,
        "share of tokens of a judge row replaced at random, so that it can read bad text",
        ge=0,
        lt=1,
    )
    seed: int = setting(0, "seed of tokenizer rows, weights and order", ge=0, le=MOST_SEED)
    cpus: int = setting(
        1,
        "CPUs (threads) each for base model and judge, which train side by side",
        ge=1,
        results=False,
    )


class Microworld(Section):
    """The embedded six-domain world of made-up facts, used where `domains` is empty."""

    facts: int = setting(100, "facts per domain", ge=4)
    seed: int = setting(0, "seed of the world; another seed is another world", ge=0, le=MOST_SEED)
