"""A real browser for tests: Chromium, driven by Playwright, with what a test needs of the pages."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
_NOTICED = ".axon-talk.busy, [data-testid=toast-body]"  # what else than a turn shows that a message was heard
_UNHEARD = 10_000  # milliseconds after which a message is sent again that nothing answered
WAIT = 60_000  # milliseconds, on a machine that does other things


@contextmanager
def chromium() -> Iterator[Any]:
    """Run the system's Chromium in the block; without one, the test is skipped."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no browser: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=path, headless=True, args=_FLAGS)
        yield made
        made.close()


class Tab:
    """A page of the server in a browser window of its own.

    Attributes:
        page: Playwright's page.
        hosts: the hosts that it sent requests to.
    """

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        from playwright.sync_api import TimeoutError as TimedOut

        self._timed_out = TimedOut
        self.context = browser.new_context(**options)
        self.context.grant_permissions(["clipboard-read", "clipboard-write"])
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT)
        self.hosts: set[str] = set()
        self.page.on(
            "request", lambda request: self.hosts.add(request.url.split("/")[2] if "//" in request.url else "")
        )
        self.page.goto(url)

    def ready(self, selector: str) -> Tab:
        """Wait until the page shows this."""
        self.page.wait_for_selector(selector)
        return self

    def say(self, text: str) -> None:
        """Write a message and send it, as often as it takes: a page that is shown may not listen yet."""
        box, turns = self.page.get_by_placeholder("Message"), len(self.page.locator(".axon-turn").all())
        answered = "turns => document.querySelectorAll('.axon-turn').length > turns || document.querySelector(%r)"
        until = time.monotonic() + WAIT / 1000
        while True:
            box.fill(text)
            box.press("Enter")
            try:
                self.page.wait_for_function(answered % _NOTICED, arg=turns, timeout=_UNHEARD)
                return
            except self._timed_out:
                if time.monotonic() > until:
                    raise

    def texts(self, role: str) -> list[str]:
        """What the user or the assistant has said."""
        return [each.inner_text() for each in self.page.locator(f".axon-turn.{role} .axon-text").all()]

    def until(self, condition: str) -> None:
        """Wait until an expression of JavaScript holds."""
        self.page.wait_for_function(condition)

    def until_said(self, text: str) -> None:
        """Wait until the last message says this."""
        last = "[...document.querySelectorAll('.axon-turn .axon-text')].at(-1)?.textContent"
        self.page.wait_for_function(f"text => {last} === text", arg=text)

    def until_idle(self) -> None:
        """Wait until nothing is being written."""
        self.page.wait_for_selector(".axon-talk:not(.busy)")

    def press(self, name: str, index: int = -1) -> None:
        """Press the last visible button of this name, or another one."""
        self.page.get_by_role("button", name=name).nth(index).click()

    def close(self) -> None:
        self.context.close()
