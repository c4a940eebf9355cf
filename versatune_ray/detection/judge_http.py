"""The judge behind any OpenAI-compatible HTTP endpoint: one request per text, as a stage of Ray
Data.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Mapping, Sequence
from functools import cache, cached_property, partial
from typing import Any, Literal

import numpy as np
import openai
import pyarrow as pa
from pydantic import ValidationError

from versatune_ray.detection.endpoint import Endpoint
from versatune_ray.detection.judge_spec import JUDGED, JudgeSpec
from versatune_ray.detection.labels import THOUGHTS, label_of_token, parse_label
from versatune_ray.detection.limits import Limits, Prices
from versatune_ray.detection.replies import Choice, Reply, Token, Usage
from versatune_ray.errors import UserError, printable, redacted
from versatune_ray.runtime.pool import Pool, Staff

_ROWS = pa.schema(list(({"store": pa.int64()} | JUDGED).items()))
_LONGEST_ANSWER = 200  # characters that are kept
_LONGEST_ERROR = 300


class HttpJudge:
    """What an actor of the pool holds: rows with a text become rows with the judge's answers.

    The calls of one actor share its connections and its bound on requests at the same time.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        questions: Sequence[tuple[str, Sequence[str]]],
        answer: Literal["probabilities", "label"],
        answer_tokens: int,
        longest_text: int,
        limits: Any = None,
    ) -> None:
        """Nothing is sent yet.

        Args:
            endpoint: where to ask.
            questions: per label order, the prompt with ``{text}`` in it, and the option name of
                every domain, in domain order.
            answer: ``probabilities`` reads them off the first token of the reply, ``label`` lets
                the judge write and reads one label.
            answer_tokens: the most tokens that the judge may write in ``label`` mode.
            longest_text: characters of a text that are shown.
            limits: an actor of ``Limits``, or None where there are none.
        """
        self._endpoint = endpoint
        self._questions = [(prompt, list(names)) for prompt, names in questions]
        self._answer = answer
        self._sampling: dict[str, Any] = {"temperature": 0, "max_tokens": answer_tokens}
        if answer == "probabilities":
            # 20 is the most that endpoints give
            self._sampling |= {"max_tokens": 1, "logprobs": True, "top_logprobs": 20}
        self._longest_text, self._limits = longest_text, limits
        self._free = asyncio.Semaphore(endpoint.concurrency)
        self._failures = 0  # requests in a row
        # one line per request, otherwise
        for library in ("openai", "httpx", "httpx2", "httpcore", "httpcore2"):
            logging.getLogger(library).setLevel(logging.WARNING)

    async def __call__(self, batch: pa.Table) -> pa.Table:
        """Judge rows of ``id``, ``store``, ``text`` and ``order`` (which question to ask); rows
        come back in the same order.

        Columns added, see ``JUDGED``: ``values`` [k] sum to 1, or are NaN where ``discarded`` says
        why; ``mass`` is 1 where the judge wrote, NaN where no reply came; ``answer`` is the
        beginning of what it wrote, unless probabilities were read; ``failed`` means that no reply
        came, so that asking again may help.

        Raises:
            UserError: the endpoint may not be asked; it refuses the key, the model, a parameter or
                log-probabilities; or 3 · concurrency requests in a row failed.
        """
        rows = zip(batch["text"].to_pylist(), batch["order"].to_pylist(), strict=True)
        tasks = [
            asyncio.create_task(self._judge(text, *self._questions[order])) for text, order in rows
        ]
        try:
            judged = await asyncio.gather(*tasks)
        finally:
            for task in tasks:  # after an error, no further requests
                task.cancel()
        columns = {"id": batch["id"], "store": batch["store"]}
        columns |= {
            name: [row[name] for row in judged] for name in _ROWS.names if name not in columns
        }
        return pa.table(columns, schema=_ROWS)

    async def _judge(self, text: str, prompt: str, names: Sequence[str]) -> dict[str, Any]:
        async with self._free:
            reply = await self._ask(prompt.replace("{text}", text[: self._longest_text]))
        if isinstance(reply, Exception):
            return self._failed(reply, len(names))
        self._failures = 0
        positions = (reply.logprobs and reply.logprobs.content) or []
        if self._answer == "probabilities" and positions and positions[0].top_logprobs:
            return _weighed(positions[0].top_logprobs, names)
        text = reply.message.content or ""
        if not text.strip() and reply.message.thoughts:
            return _row(np.full(len(names), np.nan), 1.0, "", THOUGHTS)
        return self._written(text, names)

    async def _ask(self, prompt: str) -> Choice | Exception:
        """The reply, or what went wrong: returned, because what is raised from an ``except`` drags
        along the server's words.
        """
        while True:
            await self._allowed()
            sent = dict(self._sampling)
            try:
                reply = await self._client.chat.completions.with_raw_response.create(
                    model=self._endpoint.model,
                    messages=[{"role": "user", "content": prompt}],
                    **sent,
                )
                found = Reply.model_validate_json(reply.content)
                if self._limits is not None:
                    answer = len(found.choices[0].message.content or "")
                    used = found.usage or Usage(
                        prompt_tokens=len(prompt) // 3, completion_tokens=answer // 3
                    )
                    self._limits.spend.remote(used.prompt_tokens, used.completion_tokens)
                return found.choices[0]
            except (openai.OpenAIError, ValidationError) as error:
                if not self._adapted(error, sent):
                    return error

    async def _allowed(self) -> None:
        """Wait for a turn among the requests of all actors.

        Raises:
            UserError: everything is spent.
        """
        if self._limits is None:
            return
        # the machines' clocks differ by less than matters, and no other is common to all
        wait = await self._limits.wait.remote(time.time())
        if wait is None:
            raise UserError(
                "detection.judge.http.max_cost: it is spent; what is judged stays, so raise it and "
                "run the same command again"
            )
        await asyncio.sleep(wait)

    def _adapted(self, error: Exception, sent: Mapping[str, Any]) -> bool:
        """Whether the endpoint wants a parameter of another name, or without temperature, and so
        gets it from now on; newer ones do.
        """
        line = self._line(error) if getattr(error, "status_code", None) in (400, 422) else ""
        if "max_completion_tokens" in line and "max_tokens" in sent:
            limit = self._sampling.pop("max_tokens", sent["max_tokens"])
            self._sampling["max_completion_tokens"] = limit
            return True
        if re.search(r"(?i)unsupported|not support|only the default", line) and (
            "temperature" in line and "temperature" in sent
        ):
            if self._sampling.pop("temperature", None) is not None:
                print(
                    f"[judging] {self._endpoint.model} takes no temperature: its answers are drawn",
                    flush=True,
                )
            return True
        return False

    def _written(self, text: str, names: Sequence[str]) -> dict[str, Any]:
        # In probabilities mode this is a reply without log-probabilities: one token, so perhaps
        # only part of a name.
        label = label_of_token(text, names) if self._answer == "probabilities" else None
        reason = None
        if label is None:
            label, reason = parse_label(text, names)
        values = np.full(len(names), np.nan) if label is None else np.eye(len(names))[label]
        return _row(values, 1.0, self._redacted(text)[:_LONGEST_ANSWER], reason)

    def _failed(self, error: Exception, k: int) -> dict[str, Any]:
        """A row for a request that failed for good.

        Raises:
            UserError: no other request will do better.
        """
        at, line, status = self._endpoint, self._line(error), getattr(error, "status_code", None)
        if status in (401, 403):
            known = (
                "does not accept the key in" if self._key else "wants a key, and there is none in"
            )
            raise UserError(
                f"{at.url}: the endpoint {known} the workers' environment variable "
                f"{at.key_variable}: {line}"
            )
        if status == 404:
            raise UserError(
                f"{at.url}: no model {at.model!r} there (detection.judge.path), or no "
                f"/chat/completions (detection.judge.http.url): {line}"
            )
        if status in (400, 422) and self._answer == "probabilities" and "logprob" in line:
            raise UserError(
                f"{at.url}: {at.model} gives no log-probabilities; set "
                f"detection.judge.answer=label: {line}"
            )
        if status in (400, 422) and re.search(
            r"(?i)(?:unsupported|unrecognized|unknown|unexpected) (?:parameter|argument|field)",
            line,
        ):
            raise UserError(
                f"{at.url}: {at.model} refuses what every request says, so none is asked: {line}"
            )
        self._failures += 1
        if self._failures >= 3 * at.concurrency:
            raise UserError(
                f"{at.url}: {self._failures} requests in a row failed; see to the endpoint and run "
                f"again. The last one said: {line}"
            )
        return _row(np.full(k, np.nan), np.nan, None, f"judging failed: {line}", failed=True)

    def _line(self, error: Exception) -> str:
        text = str(error)
        if isinstance(error, ValidationError):
            text = "the reply is no chat completion"  # its own words repeat the reply
        elif (
            isinstance(error, openai.APIStatusError) and text == f"Error code: {error.status_code}"
        ):
            text = f"{text} - {error.body}" if error.body else text
        elif error.__cause__ is not None:
            text = f"{text} ({error.__cause__})".replace(" ()", "")
        return " ".join(redacted(self._redacted(text)).split())[:_LONGEST_ERROR]

    def _redacted(self, text: str) -> str:
        """What the endpoint said, for files and terminals."""
        return printable(text.replace(self._key, "[key]") if self._key else text)

    @cached_property
    def _key(self) -> str:
        return self._endpoint.key()

    @cached_property
    def _client(self) -> openai.AsyncOpenAI:
        at = self._endpoint
        return openai.AsyncOpenAI(
            api_key=self._key or "none",
            base_url=at.url,
            timeout=at.timeout,
            max_retries=at.retries,
            # a redirection could lead where ``Endpoint.check`` lets nobody
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),
        )


def http_stage(spec: JudgeSpec) -> Pool:
    """Actors that ask the endpoint: see ``judge.KINDS``."""
    settings, at, question = spec.settings, spec.settings.http, spec.question
    assert at.url is not None, "the settings are complete"
    each = -(-at.concurrency // at.actors)  # the bound on requests is one for all actors
    endpoint = Endpoint(at.url, spec.model, at.key_variable, each, at.timeout, at.retries)
    questions = [
        (question.prompt(order), question.option_names(order)) for order in range(question.orders)
    ]
    limited = at.requests_per_minute is not None or at.max_cost is not None

    @cache  # what is spent stays spent, however often the pool is opened again
    def limits() -> Any:
        import ray

        prices = Prices(at.input_price, at.output_price)
        actor = ray.remote(Limits).options(num_cpus=0)
        return actor.remote(at.requests_per_minute, at.max_cost, prices)

    def hire() -> Staff:
        made = partial(
            HttpJudge,
            endpoint,
            questions,
            settings.answer,
            settings.answer_tokens,
            spec.longest_text,
            limits() if limited else None,
        )
        # several blocks in an actor, so that none waits for another's last reply
        return Staff(made, (at.actors, at.actors), {"num_cpus": 0.5}, 4)

    return Pool(hire)


def _weighed(tokens: Sequence[Token], names: Sequence[str]) -> dict[str, Any]:
    raw = np.zeros(len(names))
    for token in tokens:
        label = label_of_token(token.token, names)
        if label is not None:
            raw[label] += np.exp(token.logprob)
    mass = float(raw.sum())
    if not 0 < mass < np.inf:
        return _row(np.full(len(names), np.nan), 0.0, None, "no label among the likely tokens")
    return _row(raw / mass, mass)


def _row(
    values: Any,
    mass: float,
    answer: str | None = None,
    discarded: str | None = None,
    *,
    failed: bool = False,
) -> dict[str, Any]:
    return {
        "values": values,
        "mass": mass,
        "answer": answer,
        "discarded": discarded,
        "failed": failed,
    }
