"""Pages of gradio as ASGI applications: what of gradio the server offers to a browser, and under which rules."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Protocol

import gradio
from gradio.themes import Default
from starlette.applications import Starlette

from axon_llamachat.page.shown import source

__all__ = ["HasBlocks", "mounted", "running"]

_FONT = ("ui-sans-serif", "system-ui", "sans-serif")
_MONO = ("ui-monospace", "Consolas", "monospace")
_WAITING = 256  # events of a page that wait for their turn


class HasBlocks(Protocol):
    """A page, as it is mounted."""

    def blocks(self) -> gradio.Blocks:
        """Return the page."""
        ...


def mounted(page: HasBlocks) -> Starlette:
    """Return the application that serves a page, with fonts of the browser's own and without what asks other hosts.

    It is made while an event loop runs, or gradio would make loops that it never closes.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(_mounted_within(page))
    return _mounted(page)


async def _mounted_within(page: HasBlocks) -> Starlette:
    return _mounted(page)


def _mounted(page: HasBlocks) -> Starlette:
    blocks = page.blocks().queue(max_size=_WAITING, api_open=False)
    blocks.analytics_enabled = False
    theme = Default(primary_hue="indigo", font=_FONT, font_mono=_MONO)
    return gradio.mount_gradio_app(  # pyright: ignore[reportReturnType]
        Starlette(),  # pyright: ignore[reportArgumentType]
        blocks,
        "/",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        max_file_size=0,
        theme=theme,
        css=source("page.css"),
    )


@asynccontextmanager
async def running(app: Starlette) -> AsyncGenerator[None]:
    """Run a page's queue in the block, and end the tasks that gradio leaves behind."""
    before = asyncio.all_tasks()
    async with app.router.lifespan_context(app):
        left = asyncio.all_tasks() - before
        yield
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
