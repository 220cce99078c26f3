"""Components that show what a model writes as text, never as HTML, and errors of the server in the browser."""

from __future__ import annotations

import html
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from typing import Any

import gradio

from axon_llamachat.api_error import as_api_error

__all__ = ["shown", "source", "tell", "telling_errors"]


@cache
def source(name: str) -> str:
    """Return the text of a file beside this one."""
    return files("axon_llamachat.page").joinpath(name).read_text("utf-8")


def shown(script: str, name: str, value: Any, **options: Any) -> gradio.HTML:
    """Return a component whose value, JSON, is drawn by a script of this package.

    Its HTML is fixed, and the script puts texts into it as texts. (gradio would take text for HTML in a `Chatbot`, also
    with `render_markdown=False`, and for JavaScript in an `html_template`.)

    Args:
        script: the name of the script.
        name: the class of the HTML element that it draws into.
        value: what is drawn first.
        options: those of `gradio.HTML`.
    """
    element = f'<div class="{name}"></div>'
    script = source("draw.js") + source(script)
    return gradio.HTML(value, html_template=element, js_on_load=script, apply_default_css=False, **options)


@contextmanager
def telling_errors() -> Generator[None]:
    """Show an error that ends the block in the browser, with the words of the API.

    It is not raised, because gradio would then leave out what follows in the page.
    """
    try:
        yield
    except Exception as error:
        tell(as_api_error(error).message)


def tell(message: str) -> None:
    """Show an error in the browser until it is closed; gradio takes the message for HTML."""
    gradio.Warning(html.escape(message), duration=None, title="Error")
