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

__all__ = ["shown", "source", "telling_errors"]


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
def telling_errors(seconds: float) -> Generator[None]:
    """Show an error that ends the block in the browser, with the words of the API; a time-out is one.

    It is not raised, because gradio would then leave out what follows in the page.
    """
    try:
        yield
    except TimeoutError:
        gradio.Warning(f"the answer took more than {seconds:g} seconds; ask for fewer tokens", title="Error")
    except Exception as error:
        gradio.Warning(html.escape(as_api_error(error).message), duration=None, title="Error")
