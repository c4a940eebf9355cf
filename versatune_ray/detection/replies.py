"""What is read of a chat completion. Endpoints leave out or add fields around it, so the client's
own, stricter classes would not do.
"""

from __future__ import annotations

from pydantic import BaseModel, Field


class Token(BaseModel):
    token: str
    logprob: float


class Position(BaseModel):
    top_logprobs: list[Token] | None = None


class Logprobs(BaseModel):
    content: list[Position] | None = None


class Message(BaseModel):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None

    @property
    def thoughts(self) -> str | None:
        return self.reasoning_content or self.reasoning


class Choice(BaseModel):
    message: Message
    logprobs: Logprobs | None = None


class Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Reply(BaseModel):
    usage: Usage | None = None
    choices: list[Choice] = Field(min_length=1)
