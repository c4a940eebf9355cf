"""Ask a model questions, greedily, through a vLLM stage of Ray Data, and count exact matches."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset

from versatune_ray.domains.chat import encode_prompt, load_tokenizer
from versatune_ray.domains.records import Question, read_questions
from versatune_ray.evaluation.scores import standard_error
from versatune_ray.runs.cache import cached
from versatune_ray.runs.parts import finished_ids, write_parts
from versatune_ray.runs.storage import remove
from versatune_ray.runtime.engine import vllm_stage
from versatune_ray.runtime.progress import engine_bar
from versatune_ray.settings import Config, Evaluation

Row = dict[str, Any]


def load_questions(config: Config) -> dict[str, list[Question]]:
    """Questions of every domain that has some."""
    return {
        name: read_questions(domain.questions, config.evaluation.limit, f"domains.{name}.questions")
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
) -> tuple[dict[str, list[str]], list[str], bool]:
    """Greedy answers per domain, in question order; the errors of requests that failed and so
    answer ""; and whether all was cached.

    Raises:
        RuntimeError: every request failed.
    """
    template = None if chat_template is None else Path(chat_template).read_text(encoding="utf-8")
    flat = [(name, question.question) for name, asked in questions.items() for question in asked]
    parts = {
        "model": fingerprint,
        "questions": flat,
        "max_tokens": settings.max_tokens,
        "template": template,
        "options": settings.engine.options,
    }
    parts["questions"] = [list(pair) for pair in flat]

    def build(work: Path) -> None:
        import ray

        tokenizer = load_tokenizer(model, chat_template, trust_remote_code)
        prompts = [
            encode_prompt(tokenizer, [{"role": "user", "content": text}]) for _, text in flat
        ]
        rows: list[Row] = [{"id": i, "prompt_ids": prompt} for i, prompt in enumerate(prompts)]
        sampling = {"max_tokens": settings.max_tokens, "temperature": 0.0}

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
            return {"id": int(row["id"]), "answer": "" if error else row["answer"], "error": error}

        done = set(finished_ids(work / "answers").tolist())
        left = [row for row in rows if row["id"] not in done]
        if left:
            longest = max(len(prompt) for prompt in prompts) + settings.max_tokens
            engine = settings.engine.model_copy(
                update={"options": {"max_model_len": longest} | settings.engine.options}
            )
            stage = vllm_stage(
                model, engine, prepare, keep, gpu=gpu, trust_remote_code=trust_remote_code
            )
            blocks = math.ceil(len(left) / settings.engine.batch_size)
            answered = stage(ray.data.from_items(left, override_num_blocks=blocks)).map(finish)
            schema = {"id": pa.int64(), "answer": pa.string(), "error": pa.string()}
            with engine_bar("answers", len(left)) as bar:
                write_parts(answered, [work / "answers"], schema, bar.to)
        errors = _read(work / "answers")["error"].to_pylist()
        if all(errors):
            remove(work / "answers")
            shutil.rmtree(work / "answers")  # nothing in it is worth keeping
            raise RuntimeError(
                f"{model}: none of {len(errors)} questions could be asked: {errors[0]}"
            )

    folder, reused = cached(cache, "answers", parts, build)
    table = _read(folder / "answers")
    by_id = dict(zip(table["id"].to_pylist(), table["answer"].to_pylist(), strict=True))
    answers: dict[str, list[str]] = {name: [] for name in questions}
    for place, (name, _) in enumerate(flat):
        answers[name].append(by_id[place])
    return answers, [error for error in table["error"].to_pylist() if error], reused


def _read(folder: Path) -> pa.Table:
    return pyarrow.dataset.dataset(str(folder), format="parquet").to_table()


def is_match(answer: str, expected: str) -> bool:
    """Equal up to case, spacing and a final full stop; a one-line expectation is compared with the
    answer's first line.
    """
    if "\n" not in expected.strip():
        answer = answer.strip().partition("\n")[0]
    return _plain(answer) == _plain(expected)


def exact_match(answers: Sequence[str], questions: Sequence[Question]) -> dict[str, Any]:
    """Share of matches with its standard error (see ``scores.standard_error``)."""
    n = len(questions)
    p = (
        sum(
            is_match(answer, question.answer)
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
    return " ".join(text.split()).casefold().removesuffix(".")
