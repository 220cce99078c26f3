"""Answers of `/v1/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from axon_core import DecodeStream
from axon_eet import Answer, AnswerPiece, Question, Scored
from axon_llamachat.served import ServedModel
from axon_llamachat.wire.completion_body import CompletionBody
from axon_llamachat.wire.reply import FINISH, Reply
from axon_llamachat.wire.scores import completion_scores

__all__ = ["CompletionReply"]


class CompletionReply(Reply):
    """A completion of one or several prompts; choice `prompt · n + i` is the i-th text of a prompt.

    Offsets count the characters of the choice's own text, which has the prompt only with `echo`.
    """

    prefix, kind, event_kind = "cmpl", "text_completion", "text_completion"

    def __init__(self, model: ServedModel, body: CompletionBody, questions: Sequence[Question]) -> None:
        super().__init__(model, body, len(questions))
        self._texts = [
            _Text(model, body, body.prompts[i // body.n], questions[i // body.n].tokens(model.tokenizer))
            for i in range(self.choices)
        ]

    def push(self, index: int, answer: Answer, piece: AnswerPiece) -> list[dict[str, Any]]:
        """Return what a piece adds to choice `index`; see `Reply.push`."""
        added = self._texts[index].push(answer, piece)
        return [] if added is None else [{"index": index, **added}]

    def join(self, pieces: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the whole choice; see `Reply.join`."""
        blocks = [piece["logprobs"] for piece in pieces]
        logprobs = None
        if blocks and blocks[0] is not None:
            logprobs = {name: [value for block in blocks for value in block[name]] for name in blocks[0]}
        text = "".join(piece["text"] for piece in pieces)
        return {**pieces[-1], "text": text, "logprobs": logprobs}


class _Text:
    """One text of a completion: what its next piece adds to it."""

    def __init__(
        self, model: ServedModel, body: CompletionBody, prompt: str | Sequence[int], tokens: list[int]
    ) -> None:
        self._tokenizer = model.tokenizer
        self._echoes, self._top, self._only_prompt = body.echo, body.logprobs, body.max_tokens == 0
        self._prompt = prompt if isinstance(prompt, str) else model.tokenizer.decode(prompt)
        self._decoding = DecodeStream(model.tokenizer, () if body.echo else tokens)
        self._end = 0  # of the text so far

    def push(self, answer: Answer, piece: AnswerPiece) -> dict[str, Any] | None:
        text, scores, offsets = "", list[Scored](), list[int]()
        if self._echoes:  # the first piece comes with the prompt
            self._echoes = False
            text, scores = self._prompt, [*answer.prompt]
            offsets = [self._advance(score.token) for score in scores]
            self._end = len(text)
        finish = None if piece.finish is None else FINISH[piece.finish]
        if self._only_prompt:
            finish = "length"
        else:
            text += piece.text
            scores.append(Scored(piece.token, piece.logprob, piece.top))
            offsets.append(self._advance(piece.token))
        logprobs = None
        if self._top is not None:
            logprobs = completion_scores(self._tokenizer, scores, offsets, self._top)
        if not text and logprobs is None and finish is None:
            return None
        return {"text": text, "logprobs": logprobs, "finish_reason": finish}

    def _advance(self, token: int) -> int:
        """Return where a token's text begins, and move to its end.

        What was left of a character that a token before it began, and it does not continue, is not its own.
        """
        begin, added = self._end, self._decoding.push(token)
        self._end += len(added)
        with suppress(UnicodeDecodeError):
            own = self._tokenizer.piece(token).decode()
            if own and added.endswith(own):
                return self._end - len(own)
        return begin
