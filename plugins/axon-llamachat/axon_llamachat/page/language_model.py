"""The page of a language model: conversations with it if it can chat, and completions."""

from __future__ import annotations

import gradio

from axon_llamachat.page.chat import chat_tab
from axon_llamachat.page.completion import completion_tab
from axon_llamachat.page.settings import SamplingForm
from axon_llamachat.page.writer import Writer

__all__ = ["LanguageModelPage"]

_FOLD = "() => innerWidth < 768 && document.querySelector('.sidebar.open .toggle-button')?.click()"


class LanguageModelPage:
    """LlamaChat: a tab for conversations and one for completions, which ask the same engine as the API.

    Args:
        writer: has the model write.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def blocks(self) -> gradio.Blocks:
        """Return the page; the chat comes first if the model has learned dialogues."""
        writer, model = self._writer, self._writer.model
        with gradio.Blocks(title=f"{model.name} · LlamaChat", fill_height=True) as made:
            settings = SamplingForm(model.context, model.sampling)
            made.load(None, js=_FOLD)
            if model.template is None:
                completion_tab(writer, settings)
            else:
                with gradio.Tabs(selected="chat" if model.converses else "complete"):
                    with gradio.Tab("Chat", id="chat"):
                        chat_tab(writer, settings, made)
                    with gradio.Tab("Complete", id="complete"):
                        completion_tab(writer, settings)
        return made
