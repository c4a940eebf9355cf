"""Multiple choice without an engine: which choice is most likely after its question, from one
reading of both, where an engine would have to be started for each of many models.

All choices stand in one row behind their question, and several questions in one row: a mask and
positions let each choice see its question and itself, as if it stood there alone. The numbers are
``acc`` of lm-evaluation-harness, or ``acc_norm``, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
import torch

from versatune_ray.domains.chat import load_tokenizer
from versatune_ray.domains.choices import Choices
from versatune_ray.runs.storage import fetch
from versatune_ray.training.model import load_model

_TOKENS = 256  # of a row: the mask makes attention quadratic in it
_TOKENS_GPU = 4096


class _Read(NamedTuple):
    """Tokens of a question, and of answers behind it."""

    question: list[int]
    answers: list[list[int]]

    @property
    def size(self) -> int:
        return len(self.question) + sum(map(len, self.answers))


def likely_accuracy(
    model: str,
    asked: Mapping[str, Sequence[Sequence[Choices]]],
    trust_remote_code: bool = False,
    gpu: bool = False,
) -> dict[str, float]:
    """Share of questions per domain whose right answer is the most likely one (of equals the
    first), by its whole or per character; the mean over the domain's benchmarks.

    ``gpu``: computed on this process's GPU, in bf16 as an engine would serve it; else on its CPUs,
    in float32.
    """
    tokenizer = load_tokenizer(model, None, trust_remote_code, None)
    # sdpa takes the mask as it is
    network = (
        load_model(str(fetch(model)), trust_remote_code)
        .to("cuda" if gpu else "cpu", torch.bfloat16 if gpu else torch.float32)
        .eval()
    )
    return {
        domain: float(np.mean([_share_right(network, tokenizer, some, gpu) for some in benchmarks]))
        for domain, benchmarks in asked.items()
    }


def _share_right(network: Any, tokenizer: Any, asked: Sequence[Choices], gpu: bool) -> float:
    # the harness leaves vLLM room for one more token
    context = network.config.get_text_config().max_position_embeddings - 1
    read = [part for one in asked for part in _tokens(tokenizer, one, context)]
    logs: list[list[float]] = [[] for _ in read]
    for row in _rows(read, _TOKENS_GPU if gpu else _TOKENS):
        found = log_likelihoods(network, [read[place] for place in row])
        for place, some in zip(row, found, strict=True):
            logs[place] = some
    each, right = chain.from_iterable(logs), 0
    for one in asked:
        likely = list(islice(each, len(one.answers)))
        lengths = list(map(len, one.answers)) if one.per_character else 1
        right += int(np.argmax(np.divide(likely, lengths))) == one.right
    return right / len(asked)


def _tokens(tokenizer: Any, one: Choices, context: int) -> list[_Read]:
    """As the harness reads them: with the special tokens that the tokenizer adds; an answer's
    tokens are those that it adds to its question's. Of what is longer than ``context`` the
    question loses its beginning, for each answer as much as that one needs.
    """
    begin = tokenizer.bos_token or tokenizer.eos_token

    def encode(text: str) -> list[int]:
        special = not (begin and text.startswith(begin))  # else it would stand there twice
        return list(tokenizer.encode(text, add_special_tokens=special))

    question = encode(one.question)
    answers = [encode(f"{one.question} {text}")[len(question) :] for text in one.answers]
    if len(question) + max(map(len, answers)) <= context:
        return [_Read(question, answers)]
    return [_Read(question[-max(1, context - len(part)) :], [part]) for part in answers]


def _rows(read: Sequence[_Read], most: int) -> Iterator[list[int]]:
    """Questions by number, the shortest first, as many in a row as ``most`` tokens hold."""
    row: list[int] = []
    size = 0
    for place in np.argsort([one.size for one in read], kind="stable").tolist():
        if row and size + read[place].size > most:
            yield row
            row, size = [], 0
        row.append(place)
        size += read[place].size
    if row:
        yield row


@torch.no_grad()
def log_likelihoods(network: Any, row: Sequence[_Read]) -> list[list[float]]:
    """log p of every answer after its question, in nats."""
    device, dtype = network.device, network.dtype
    tokens: list[int] = []
    whose: list[int] = []  # number of the question
    branch: list[int] = []  # number of the answer, -1 in the question
    position: list[int] = []
    before: list[int] = []  # of each token of an answer: the place that foretells it
    told: list[int] = []  # and its own
    for number, one in enumerate(row):
        last = len(tokens) + len(one.question) - 1
        for at, part in enumerate([one.question, *one.answers], -1):
            start = 0 if at < 0 else len(one.question)
            if at >= 0:
                before += [last, *range(len(tokens), len(tokens) + len(part) - 1)]
                told += range(len(tokens), len(tokens) + len(part))
            tokens += part
            whose += [number] * len(part)
            branch += [at] * len(part)
            position += range(start, start + len(part))
    ids = torch.tensor([tokens], device=device)
    own, side, place = (torch.tensor(some, device=device) for some in (whose, branch, position))
    sees = (
        (own[:, None] == own[None, :])
        & ((side[None, :] < 0) | (side[:, None] == side[None, :]))
        & (place[None, :] <= place[:, None])
    )
    mask = torch.zeros(sees.shape, dtype=dtype, device=device).masked_fill(
        ~sees, torch.finfo(dtype).min
    )
    hidden = network.get_decoder()(
        input_ids=ids, attention_mask=mask[None, None], position_ids=place[None], use_cache=False
    ).last_hidden_state[0]
    logits = network.get_output_embeddings()(hidden[before]).float()
    logs = (logits.gather(1, ids[0, told][:, None])[:, 0] - torch.logsumexp(logits, dim=1)).tolist()
    found: list[list[float]] = []
    start = 0
    for one in row:
        found.append([])
        for part in one.answers:
            found[-1].append(sum(logs[start : start + len(part)]))
            start += len(part)
    return found
