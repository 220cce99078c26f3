"""The tab for completions: a prompt, and the text that continues it, with the probability of each token."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any

import gradio

from axon_core import Tokenizer
from axon_eet import AnswerPiece, Question
from axon_llamachat.page.settings import SamplingForm
from axon_llamachat.page.shown import shown
from axon_llamachat.page.writer import Writer
from axon_llamachat.wire.completion_body import CompletionBody
from axon_llamachat.wire.scores import token_text

__all__ = ["TokenSpans", "completion_tab"]

_TOP = 5


def completion_tab(writer: Writer, settings: SamplingForm) -> None:
    """Add the components, and say what happens."""
    box = gradio.Textbox(label="Text to continue", lines=4, max_lines=12, elem_classes="axon-prompt")
    with gradio.Row(elem_classes="axon-ask"):
        run = gradio.Button("Complete", variant="primary", min_width=80, elem_classes="axon-idle")
        stop = gradio.Button("Stop", variant="stop", min_width=80, elem_classes="axon-busy")
    spans = TokenSpans(writer.model.tokenizer)
    view = shown("tokens.js", "axon-tokens", spans.json_value(), elem_classes="axon-view", autoscroll=True)

    def question(body: CompletionBody) -> Question:
        return writer.model.completion_questions(body)[0]

    async def complete(prompt: str, *values: Any) -> AsyncGenerator[dict[str, Any]]:
        spans = TokenSpans(writer.model.tokenizer, prompt)
        yield spans.json_value(busy=True)
        body = {**SamplingForm.parameters(values), "prompt": prompt, "logprobs": _TOP}
        async with aclosing(writer.write(CompletionBody, body, question)) as arriving:
            async for pieces in arriving:
                spans.add(pieces)
                yield spans.json_value(busy=True)

    def settle(value: Any) -> Any:
        return {**value, "busy": False} if isinstance(value, dict) else spans.json_value()

    quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
    writing = run.click(complete, [box, *settings.inputs], view, **quiet)
    writing.then(settle, view, view, **quiet)
    stop.click(settle, view, view, cancels=[writing], **quiet)


class TokenSpans:
    """A text in the pieces that its tokens add, each with the probabilities of its tokens.

    A token that adds nothing yet, such as a part of a character, is told with the next one.

    Args:
        tokenizer: the model's.
        prompt: the text before it.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: str = "") -> None:
        self._tokenizer, self._prompt = tokenizer, prompt
        self._spans: list[dict[str, Any]] = []
        self._open = False  # whether the last span has no text yet

    def add(self, pieces: Iterable[AnswerPiece]) -> None:
        """Take pieces of the text."""
        for piece in pieces:
            if not self._open:
                self._spans.append({"text": "", "scores": []})
            span = self._spans[-1]
            span["text"] += piece.text
            likeliest = [[self._name(token), _percent(logprob)] for token, logprob in piece.top[:_TOP]]
            own = [self._name(piece.token), _percent(piece.logprob)]
            span["scores"].append({"own": own, "p": math.exp(piece.logprob), "top": likeliest})
            self._open = not piece.text

    def json_value(self, *, busy: bool = False) -> dict[str, Any]:
        """Return what the browser draws."""
        return {"prompt": self._prompt, "spans": [dict(span) for span in self._spans], "busy": busy}

    def _name(self, token: int) -> str:
        return token_text(self._tokenizer, token)


def _percent(logprob: float) -> str:
    """Return a probability as a text.

    >>> _percent(0.0), _percent(-1.0), _percent(-20.0)
    ('100.0 %', '36.8 %', '< 0.1 %')
    """
    p = 100 * math.exp(logprob)
    return f"{p:.1f} %" if p >= 0.1 else "< 0.1 %"
