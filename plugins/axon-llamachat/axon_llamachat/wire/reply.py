"""What the answers to both kinds of completion have in common: as one object, and as the events of a stream."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from axon_eet import Answer, AnswerPiece, Usage
from axon_llamachat.served import ServedModel
from axon_llamachat.wire.sampled import SampledBody

__all__ = ["Reply", "usage_json"]

FINISH = {"eos": "stop", "stop": "stop", "length": "length"}
"""`finish_reason` by the engine's reason."""


class Reply(ABC):
    """An answer being written: pieces go in, choices of the wire format come out.

    Args:
        model: whose answer it is.
        body: what was asked.
        prompts: how many prompts it has.

    Attributes:
        kind: the `object` of the whole answer.
        event_kind: the `object` of an event.
    """

    prefix: ClassVar[str]
    kind: ClassVar[str]
    event_kind: ClassVar[str]

    def __init__(self, model: ServedModel, body: SampledBody, prompts: int = 1) -> None:
        self.model, self.n = model, body.n
        self.choices = prompts * body.n
        self._counts_usage = body.counts_usage
        self._facts = {"id": f"{self.prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model.name}

    @abstractmethod
    def push(self, index: int, answer: Answer, piece: AnswerPiece) -> list[dict[str, Any]]:
        """Return what a piece adds to choice `index`, each for an event of its own."""

    @abstractmethod
    def join(self, pieces: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the whole choice of the results of `push`."""

    def opening(self) -> list[dict[str, Any]]:
        """Return the choices that a stream begins with."""
        return []

    def event(self, choice: dict[str, Any]) -> dict[str, Any]:
        """Return the event that has one choice."""
        return self._event([choice]) | ({"usage": None} if self._counts_usage else {})

    def last_events(self, usage: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the events that follow the last choice."""
        return [self._event([]) | {"usage": usage}] if self._counts_usage else []

    def whole(self, choices: Iterable[Sequence[dict[str, Any]]], usage: dict[str, Any]) -> dict[str, Any]:
        """Return the answer as one object, of the results of `push` for each choice."""
        joined = [self.join(pieces) for pieces in choices]
        return {**self._named(self.kind), "choices": joined, "usage": usage}

    def _event(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._named(self.event_kind), "choices": choices}

    def _named(self, kind: str) -> dict[str, Any]:
        return {**self._facts, "object": kind, "system_fingerprint": self.model.fingerprint}


def usage_json(usages: Sequence[Usage]) -> dict[str, Any]:
    """Return the `usage` of an answer; a prompt counts once, however many texts continue it."""
    prompt = sum(usage.prompt_tokens for usage in usages)
    completion = sum(usage.completion_tokens for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in usages)},
    }
