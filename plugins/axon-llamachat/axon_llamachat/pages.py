"""What a browser shows of a model: the interface, and the registry in which plugins offer pages for their models."""

from __future__ import annotations

import base64
import html
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Self

from axon_core import config
from axon_core.registry import Registry

if TYPE_CHECKING:
    import gradio

__all__ = ["PAGES", "Page", "picture"]


class Page(ABC):
    """A page in the browser for models of one type.

    A plugin offers it in the entry-point group `axon.v1.page`, under the key of its model. `axon serve RUN` then loads
    a run of such a model with `load` and shows what `blocks` returns. Nothing is imported before that; the module must
    not need gradio when it is imported, which `axon doctor` does. With an extra called `page` that installs
    `axon-llamachat[page]`, the plugin works without this one too.

    The page decides how its functions run: gradio runs ordinary ones in threads, one call at a time for each event
    unless that has another `concurrency_limit`. Their errors are shown if they are `gradio.Error`. A page gets no
    files from the browser and gives none to it, because the server has no routes for these: pictures are written into
    the page (`picture`). What a model writes must never be shown as HTML or Markdown: `gradio.Textbox` shows text.
    """

    class Config(config.Config):
        """A page has no options."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, *, name: str, device: str) -> Self:
        """Return the page of a saved model.

        Args:
            folder: the model folder.
            name: what the model is called.
            device: where it computes.

        Raises:
            CheckpointError: the model is damaged, or is not of the page's type.
        """

    @abstractmethod
    def blocks(self) -> gradio.Blocks:
        """Return the page; the server adds its theme and mounts it."""


def picture(data: bytes, about: str, kind: str = "png") -> str:
    """Return a picture as HTML for `gradio.HTML`: the file's bytes, what it shows in words, and its format.

    >>> picture(b"GIF89a", 'a "six"', "gif")
    '<img src="data:image/gif;base64,R0lGODlh" alt="a &quot;six&quot;">'
    """
    return f'<img src="data:image/{kind};base64,{base64.b64encode(data).decode()}" alt="{html.escape(about)}">'


PAGES: Registry[Page] = Registry("page", Page)
"""Pages by the key of the models that they show; a plugin adds one in the entry-point group `axon.v1.page`."""
