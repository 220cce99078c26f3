"""Answers of `/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from axon_eet import Answer, AnswerPiece, Scored
from axon_llamachat.served import ServedModel
from axon_llamachat.wire.chat_body import ChatBody
from axon_llamachat.wire.reply import FINISH, Reply
from axon_llamachat.wire.scores import chat_scores

__all__ = ["ChatReply"]


class ChatReply(Reply):
    """The assistant's next message, in `n` versions; space before its first word is left out, as `axon chat` does."""

    prefix, kind, event_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, model: ServedModel, body: ChatBody) -> None:
        super().__init__(model, body)
        self._top = body.top_logprobs if body.logprobs else None
        self._begun = [False] * self.choices

    def opening(self) -> list[dict[str, Any]]:
        """Return the choices that say who speaks."""
        return [_choice(i, {"role": "assistant", "content": ""}, None, None) for i in range(self.choices)]

    def push(self, index: int, answer: Answer, piece: AnswerPiece) -> list[dict[str, Any]]:
        """Return what a piece adds to choice `index`; see `Reply.push`."""
        text = piece.text if self._begun[index] else piece.text.lstrip()
        self._begun[index] |= bool(text)
        logprobs, added = None, list[dict[str, Any]]()
        if self._top is not None:
            scores = [Scored(piece.token, piece.logprob, piece.top)]
            logprobs = chat_scores(self.model.tokenizer, scores, self._top)
        if text or logprobs is not None:
            added.append(_choice(index, {"content": text}, logprobs, None))
        if piece.finish is not None:
            added.append(_choice(index, {}, None, FINISH[piece.finish]))
        return added

    def join(self, pieces: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the whole choice; see `Reply.join`."""
        content = "".join(piece["delta"].get("content", "") for piece in pieces)
        logprobs = None
        if self._top is not None:
            entries = [entry for piece in pieces if piece["logprobs"] for entry in piece["logprobs"]["content"]]
            logprobs = {"content": entries, "refusal": None}
        return {
            "index": pieces[-1]["index"],
            "message": {"role": "assistant", "content": content, "refusal": None},
            "logprobs": logprobs,
            "finish_reason": pieces[-1]["finish_reason"],
        }


def _choice(index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None, finish: str | None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
