"""The tab for conversations: what is said, the conversations so far, and what their buttons do."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import gradio

from axon_llamachat.page.conversations import SavedTalks, Talk
from axon_llamachat.page.settings import SamplingForm
from axon_llamachat.page.shown import shown, source
from axon_llamachat.page.writer import Writer
from axon_llamachat.wire.chat_body import ChatBody

__all__ = ["chat_tab"]

Json = Mapping[str, Any]
"""A value as the browser sends it."""
Three = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]
"""The open conversation, those that the browser keeps, and their list."""


def chat_tab(writer: Writer, settings: SamplingForm, blocks: gradio.Blocks) -> None:
    """Add the components to these blocks, and say what happens."""
    with settings.top:
        listed = shown("listing.js", "axon-listing", SavedTalks().listing(""))
        export = gradio.Button("Export", size="sm")
        system = gradio.Textbox(label="System prompt", lines=2, max_lines=8, placeholder="How it should answer")
    saved = gradio.BrowserState(
        SavedTalks().json_value(), storage_key=f"axon {writer.model.name}", secret="not a secret"
    )
    talk = shown("talk.js", "axon-talk", Talk().json_value(), elem_classes="axon-view", autoscroll=True)
    with gradio.Row(elem_classes="axon-ask"):
        box = gradio.Textbox(
            show_label=False, placeholder="Message", lines=1, max_lines=8, scale=8, autofocus=True, container=False
        )
        send = gradio.Button("Send", variant="primary", min_width=80, elem_classes="axon-idle")
        stop = gradio.Button("Stop", variant="stop", min_width=80, elem_classes="axon-busy")

    async def answer(value: Json, system: str, *values: Any) -> AsyncGenerator[dict[str, Any]]:
        talk = Talk.of(value)
        yield talk.json_value()  # gradio takes nothing for an empty value
        async with aclosing(_answer(writer, talk, system, SamplingForm.parameters(values))) as growing:
            async for written in growing:
                yield written.json_value()

    kept = [talk, saved, listed]
    quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
    begins = (
        gradio.on([box.submit, send.click], _ask, [talk, box], [talk, box], **quiet),
        talk.retry(_retry, talk, talk, **quiet),
        talk.edit(_edit, talk, talk, **quiet),
    )
    answering: Any = [begin.then(answer, [talk, system, *settings.inputs], talk, **quiet) for begin in begins]
    for each in answering:
        each.then(_settle, [talk, saved], kept, **quiet)
    stop.click(_settle, [talk, saved], kept, cancels=answering, **quiet)
    listed.fresh(_fresh, [talk, saved], kept, cancels=answering, **quiet)
    listed.pick(_pick, [talk, saved], kept, cancels=answering, **quiet)
    listed.remove(_remove, [talk, saved], kept, cancels=answering, **quiet)
    export.click(None, [talk, system], js=source("export.js"))
    blocks.load(_settle, [talk, saved], kept, **quiet)


async def _answer(writer: Writer, talk: Talk, system: str, parameters: Mapping[str, Any]) -> AsyncGenerator[Talk]:
    """Yield the conversation with more and more of the answer; space before its first word is left out."""
    if not talk.busy:
        return
    said = [turn.model_dump() for turn in talk.turns]
    messages = [{"role": "system", "content": system}, *said] if system.strip() else said
    body, text = {**parameters, "messages": messages}, ""
    async with aclosing(writer.write(ChatBody, body, writer.model.chat_question)) as arriving:
        async for pieces in arriving:
            text += "".join(piece.text for piece in pieces)
            yield talk.answer(text.lstrip())


def _ask(value: Json, text: str) -> tuple[dict[str, Any], str]:
    talk = Talk.of(value)
    asked = talk.ask(text)
    return asked.json_value(), text if asked == talk else ""


def _retry(value: Json) -> dict[str, Any]:
    return Talk.of(value).retry().json_value()


def _edit(value: Json, event: gradio.EventData) -> dict[str, Any]:
    index, text = event.index, event.text
    talk = Talk.of(value)
    valid = isinstance(index, int) and isinstance(text, str)
    return (talk.edit(index, text) if valid else talk).json_value()


def _settle(value: Json, saved: Json) -> Three:
    return _open(Talk.of(value), SavedTalks.of(saved).put(Talk.of(value)))


def _fresh(value: Json, saved: Json) -> Three:
    return _open(Talk(), SavedTalks.of(saved).put(Talk.of(value)))


def _pick(value: Json, saved: Json, event: gradio.EventData) -> Three:
    after = SavedTalks.of(saved).put(Talk.of(value))
    return _open(after.find(str(event.key)) or Talk(), after)


def _remove(value: Json, saved: Json, event: gradio.EventData) -> Three:
    talk, key = Talk.of(value), str(event.key)
    after = SavedTalks.of(saved).put(talk).without(key)
    return _open(Talk() if talk.key == key else talk, after)


def _open(talk: Talk, saved: SavedTalks) -> Three:
    return talk.settle().json_value(), saved.json_value(), saved.listing(talk.key)
