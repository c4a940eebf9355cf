"""Ask a model questions, greedily, through a vLLM stage of Ray Data, and count exact matches."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from versatune_ray.domains.chat import ENCODING, encode_prompt, end_of_turn, load_tokenizer
from versatune_ray.domains.records import BadRecord, Question, Rules, read_questions
from versatune_ray.domains.template import read_template
from versatune_ray.errors import UserError
from versatune_ray.evaluation.scores import standard_error
from versatune_ray.runs.cache import cached
from versatune_ray.runs.parts import finished_ids, read_rows, write_parts
from versatune_ray.runtime.engine import engine_key, vllm_stage
from versatune_ray.runtime.progress import engine_bar
from versatune_ray.settings import Config, Evaluation

Row = dict[str, Any]
_FORMAT = 2  # 1 kept failed requests as empty answers, and knew no device
_ANSWERED = {
    "id": pa.int64(),
    "answer": pa.string(),
    "error": pa.string(),
    "failed": pa.bool_(),
}

_AROUND = (*((mark, mark) for mark in ("**", "*", "__", "`", "$$", "$")), (r"\(", r"\)"))
# the innermost ones first
_BOXED = re.compile(r"\\(?:boxed|fbox|text|mathrm|mathbf)\{((?:[^{}]|\{[^{}]*\})*)\}")
_THOUSANDS = re.compile(
    r"(?<![\d.,])[1-9]\d{0,2}(?:[,'\u2019\u00a0\u2009\u202f\uff0c]\d{3})+(?![\d])"
)


def load_questions(config: Config) -> dict[str, list[Question]]:
    """Questions of every domain that has some."""
    return {
        name: read_questions(
            domain.questions,
            config.evaluation.limit,
            f"domains.{name}.questions",
            Rules(domain.fields),
        )
        for name, domain in config.domains.items()
        if domain.questions
    }


def ask(
    model: str,
    fingerprint: str,
    questions: Mapping[str, Sequence[Question]],
    settings: Evaluation,
    chat_template: str | None,
    cache: Path,
    *,
    gpu: bool,
    trust_remote_code: bool,
    template_kwargs: Mapping[str, Any] | None = None,
) -> tuple[dict[str, list[str]], list[str], bool]:
    """Greedy answers per domain, in question order, each up to the token that ends an assistant
    turn; the errors of requests that failed and so answer ""; and whether all was cached.

    Raises:
        UserError: the chat template refuses a question.
        RuntimeError: every request failed.
    """
    template = None if chat_template is None else read_template(chat_template)
    flat = [(name, question.question) for name, asked in questions.items() for question in asked]
    parts = {
        "format": _FORMAT,
        "model": fingerprint,
        "max_tokens": settings.max_tokens,
        "template": template,
        "engine": engine_key(settings.engine, gpu),
        "template_kwargs": dict(template_kwargs or {}),
        "encoding": ENCODING,
    }
    parts["questions"] = [list(pair) for pair in flat]

    def build(work: Path) -> None:
        import ray

        tokenizer = load_tokenizer(model, chat_template, trust_remote_code, template_kwargs)
        prompts = []
        for name, text in flat:
            try:
                prompts.append(encode_prompt(tokenizer, [{"role": "user", "content": text}]))
            except BadRecord as error:
                raise UserError(f"domains.{name}.questions: {text[:40]!r}: {error}") from None
        rows: list[Row] = [{"id": i, "prompt_ids": prompt} for i, prompt in enumerate(prompts)]
        sampling: dict[str, Any] = {"max_tokens": settings.max_tokens, "temperature": 0.0}
        # a base model's own configuration stops at what ends a document
        if (stop := end_of_turn(tokenizer)) is not None:
            sampling["stop_token_ids"] = [stop]

        def prepare(row: Row) -> Row:
            return {
                "id": row["id"],
                "tokenized_prompt": row["prompt_ids"],
                "sampling_params": sampling,
            }

        def keep(row: Row) -> Row:
            return {"id": row["id"], "answer": row["generated_text"]}

        def finish(row: Row) -> Row:
            error = row.get("__inference_error__") or ""
            answer = "" if error else row["answer"]
            return {"id": int(row["id"]), "answer": answer, "error": error, "failed": bool(error)}

        done = set(finished_ids(work / "answers").tolist())
        left = [row for row in rows if row["id"] not in done]
        if left:
            longest = max(len(prompt) for prompt in prompts) + settings.max_tokens
            engine = settings.engine.model_copy(
                update={"options": {"max_model_len": longest} | settings.engine.options}
            )
            blocks = math.ceil(len(left) / settings.engine.batch_size)
            asked = ray.data.from_items(left, override_num_blocks=blocks)
            with (
                vllm_stage(
                    model, engine, prepare, keep, gpu=gpu, trust_remote_code=trust_remote_code
                ) as stage,
                engine_bar("answers", len(left)) as bar,
            ):
                answered = stage(asked, blocks).map(finish)
                write_parts(answered, [work / "answers"], _ANSWERED, bar.to)
        errors = _errors(_read(work / "answers"))
        if errors:
            raise _SomeFailed(work, errors)

    try:
        folder, reused = cached(cache, "answers", parts, build)
    except _SomeFailed as some:
        # A failed request is no answer: the next run asks again, and only what failed.
        folder, reused = some.work, False
        if len(some.errors) == len(flat):
            raise RuntimeError(
                f"{model}: none of {len(flat)} questions could be asked: {some.errors[0]}"
            ) from None
    table = _read(folder / "answers")
    by_id = dict(zip(table["id"].to_pylist(), table["answer"].to_pylist(), strict=True))
    answers: dict[str, list[str]] = {name: [] for name in questions}
    for place, (name, _) in enumerate(flat):
        answers[name].append(by_id[place])
    return answers, _errors(table), reused


class _SomeFailed(Exception):
    """Requests of a pass failed; its other answers are in ``work``, which is no entry yet."""

    def __init__(self, work: Path, errors: list[str]):
        super().__init__(errors[0])
        self.work, self.errors = work, errors


def _read(folder: Path) -> pa.Table:
    return read_rows(folder, _ANSWERED, ["id", "answer", "error"])


def _errors(table: pa.Table) -> list[str]:
    return [error for error in table["error"].to_pylist() if error]


def is_match(answer: str, expected: str | Sequence[str]) -> bool:
    """Equal to an accepted answer up to case, spacing, Unicode form, thousands' separators, final
    full stops, and what sets an answer off (``**x**``, ``\\boxed{x}``, ``$x$``).

    What stands before ``</think>`` is not compared; with a one-line expectation only the first line
    after it is.
    """
    accepted = [expected] if isinstance(expected, str) else expected
    answer = _bare(answer.rpartition("</think>")[2])
    return any(
        _plain(answer if "\n" in one.strip() else answer.partition("\n")[0]) == _plain(one)
        for one in accepted
    )


def exact_match(answers: Sequence[str], questions: Sequence[Question]) -> dict[str, Any]:
    """Share of matches with its standard error (see ``scores.standard_error``)."""
    n = len(questions)
    p = (
        sum(
            is_match(answer, question.answers)
            for answer, question in zip(answers, questions, strict=True)
        )
        / n
    )
    return {
        "benchmark": "questions",
        "metric": "exact_match",
        "unit": "share",
        "value": p,
        "standard_error": standard_error(p, n),
        "n": n,
    }


def _plain(text: str) -> str:
    # spaces between digits are known as separators only before NFKC
    text = unicodedata.normalize("NFKC", _THOUSANDS.sub(_joined, text))
    text = _bare(text) or text
    text = _THOUSANDS.sub(_joined, text)
    return unicodedata.normalize("NFKC", " ".join(text.split()).casefold())


def _joined(number: re.Match[str]) -> str:
    return re.sub(r"\D", "", number.group())


def _bare(text: str) -> str:
    """Without final full stops and what sets an answer off."""
    while True:
        inner = _BOXED.sub(r"\1", text).strip().rstrip(".。．｡").rstrip()
        for left, right in _AROUND:
            if len(inner) > len(left + right) and inner.startswith(left) and inner.endswith(right):
                within = inner[len(left) : -len(right)]
                # "*a* or *b*" and "$5 or $6" are no answer set off as a whole
                if left not in within and right not in within:
                    inner = within.strip()
                    break
        if inner == text:
            return text
        text = inner
