"""A judge served by vLLM: one output token per request and its probabilities over the labels, or a
written answer.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from versatune_ray.detection.judge_spec import JudgeSpec
from versatune_ray.detection.labels import parse_label
from versatune_ray.detection.prompt import render
from versatune_ray.runtime.engine import vllm_stage
from versatune_ray.runtime.models import check_length, load_plain_tokenizer
from versatune_ray.runtime.pool import Pool

Row = dict[str, Any]


def vllm_judge(spec: JudgeSpec) -> Pool:
    """The judge's engines: see ``judge.KINDS``.

    Raises:
        UserError: prompt, text and answer are longer than the judge's context.
    """
    settings, question, parted = spec.settings, spec.question, spec.nodes
    tokenizer = load_plain_tokenizer(spec.model, spec.trust_remote_code)
    prompts = [
        render(tokenizer, question.prompt(order), settings.chat_template_kwargs)
        for order in range(question.orders)
    ]
    names = [question.option_names(order) for order in range(question.orders)]
    path, remote, longest_text = spec.model, spec.trust_remote_code, settings.max_text_tokens
    written = settings.answer_tokens if settings.answer == "label" else 1
    width = len(question.domains)

    def prepare(row: Row) -> Row:
        before, after = prompts[row["order"]]
        # A text is data: what looks like a special token in it, such as the end of a chat turn,
        # must not become one.
        text = load_plain_tokenizer(path, remote).encode(
            row["text"], add_special_tokens=False, split_special_tokens=True
        )
        asked = [*before, *text[:longest_text], *after]
        sampling: Row = {"max_tokens": written, "temperature": 0.0}
        if parted:
            node = parted[row["node"]]
            asked += node.path
            # The raw log-probabilities of exactly the labels, however unlikely they are.
            sampling |= {"logprob_token_ids": list(node.children), "detokenize": False}
        return {
            "id": row["id"],
            "store": row["store"],
            "order": row["order"],
            "tokenized_prompt": asked,
            "sampling_params": sampling,
        } | ({"node": row["node"]})

    def read(row: Row) -> Row:
        kept = {
            "id": row["id"],
            "store": row["store"],
            "answer": None,
            "discarded": None,
            "failed": False,
        }
        if parted:
            logprobs = np.array(
                [row["logprobs"][0][token]["logprob"] for token in parted[row["node"]].children]
            )
            weights = np.exp(logprobs - logprobs.max())
            return kept | {
                "values": (weights / weights.sum()).tolist(),
                "mass": float(np.exp(logprobs).sum()),
            }
        label, reason = parse_label(row["generated_text"], names[row["order"]])
        values = np.full(width, np.nan) if label is None else np.eye(width)[label]
        return kept | {
            "values": values.tolist(),
            "mass": 1.0,
            "answer": row["generated_text"][:200],
            "discarded": reason,
        }

    def finish(row: Row) -> Row:
        error = row.get("__inference_error__") or ""
        if error:
            empty = {"values": [], "mass": float("nan"), "answer": None}
            return {
                "id": row["id"],
                "store": row["store"],
                "discarded": f"judging failed: {error}",
                "failed": True,
            } | empty
        return {
            name: row[name]
            for name in ("id", "store", "values", "mass", "answer", "discarded", "failed")
        }

    longest = max(len(before) + len(after) for before, after in prompts) + longest_text + written
    longest += max((len(node.path) for node in parted), default=0)
    check_length("detection.judge.max_text_tokens", longest, path, remote)
    engine = settings.engine.model_copy(
        update={"options": {"max_model_len": longest, "max_logprobs": -1} | settings.engine.options}
    )
    return vllm_stage(
        path, engine, prepare, read, gpu=spec.gpu, trust_remote_code=remote, finish=finish
    )
