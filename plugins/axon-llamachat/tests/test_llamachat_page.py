"""LlamaChat in a real browser: what a person types is answered by the engine, and what a model writes is text."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import gradio
import pytest
from browser import Tab, chromium

from axon_core import ByteTokenizer
from axon_llamachat.page.settings import SamplingForm

HOSTILE = (
    "<b>bold</b> <img src=x onerror='window.hit=1'> <script>window.hit=1</script> <a href='javascript:hit()'>a</a> "
    "**md** [x](http://far.example) $$x^2$$ ${window.hit=1} {{value}} &lt;&amp; `c`\n    four spaces  two\n# title"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as made:
        yield made


@pytest.fixture
def tab(browser) -> Iterator[Callable[..., Tab]]:
    """Return a function that opens a page of a server; it is closed with the test."""
    with ExitStack() as stack:

        def open_(server: Any, path: str = "/", **options: Any) -> Tab:
            made = Tab(browser, server.root + path, **options)
            stack.callback(made.close)
            return made

        yield open_


@pytest.fixture
def chatting(serving, scripted, as_served) -> tuple[Any, Any]:
    """An engine that writes what a test tells it to, and a server whose page begins with the chat."""
    engine = scripted()
    return engine, serving(as_served(engine, converses=True), pages={})


def asked(engine: Any, index: int = -1) -> str:
    """The prompt of the question that the engine was asked next, as a text without markers."""
    assert engine.asked.acquire(timeout=60)
    return ByteTokenizer().decode(engine.answers[index].question.prompt)


def test_a_person_types_and_the_answer_streams_stops_and_is_written_again(tab, chatting):
    engine, server = chatting
    page = tab(server).ready(".axon-talk")
    page.say("Hello there")
    assert asked(engine) == "[INST] Hello there [/INST]"
    assert page.page.get_by_placeholder("Message").input_value() == ""
    engine.write(engine.answers[0], " General")
    page.until_said("General")
    assert page.page.locator(".axon-talk.busy").count() == 1
    engine.write(engine.answers[0], " Kenobi")
    page.until_said("General Kenobi")
    page.press("Stop")
    assert engine.ended.acquire(timeout=60) and engine.answers[0].cancelled
    page.until_idle()
    assert page.texts("assistant") == ["General Kenobi"]
    page.press("Write another answer")
    assert asked(engine) == "[INST] Hello there [/INST]"
    engine.write(engine.answers[1], "You are bold", end=True)
    page.until_said("You are bold")
    page.until_idle()
    page.say("Who?")
    assert asked(engine) == "[INST] Hello there [/INST] You are bold [INST] Who? [/INST]"
    engine.write(engine.answers[2], "Me", end=True)
    page.until_said("Me")
    assert page.texts("user") == ["Hello there", "Who?"] and len(page.hosts) == 1


def test_a_message_is_changed_and_answered_again(tab, chatting):
    engine, server = chatting
    page = tab(server).ready(".axon-talk")
    for text in ("one", "two"):
        page.say(text)
        asked(engine)
        engine.write(engine.answers[-1], f"re {text}", end=True)
        page.until_said(f"re {text}")
        page.until_idle()
    page.press("Edit this message", 0)
    page.page.locator(".axon-edit").fill("three <i>")
    page.page.locator(".axon-edit").press("Enter")
    assert asked(engine) == "[INST] three <i> [/INST]"
    engine.write(engine.answers[-1], "re three", end=True)
    page.until_said("re three")
    assert (page.texts("user"), page.texts("assistant")) == (["three <i>"], ["re three"])


def test_what_a_model_writes_is_never_html(tab, serving, scripted, as_served):
    engine = scripted(text=HOSTILE)
    page = tab(serving(as_served(engine, converses=True), pages={})).ready(".axon-talk")
    page.say(HOSTILE)
    page.until_idle()
    page.until("document.querySelectorAll('.axon-listing li').length === 1")
    texts = page.page.evaluate("[...document.querySelectorAll('.axon-turn .axon-text')].map(each => each.textContent)")
    assert texts == [HOSTILE, HOSTILE]
    page.page.get_by_role("tab", name="Complete").click()
    page.page.get_by_label("Text to continue").fill(HOSTILE)
    page.page.locator("button.axon-idle:visible").click()
    page.until(f"document.querySelectorAll('.axon-token').length === {len(HOSTILE)}")
    page.ready(".axon-tokens:not(.busy)")
    found = page.page.evaluate("document.querySelector('.axon-tokens .axon-text').textContent")
    assert found == HOSTILE + HOSTILE
    made = ".axon-text :is(b, img, script, a, h1, code, .katex), .axon-listing :is(b, img), .axon-tip :is(b, img)"
    assert page.page.locator(made).count() == 0
    assert page.page.evaluate("window.hit") is None and len(page.hosts) == 1


def test_errors_quote_texts_as_texts(tab, chatting):
    _, server = chatting
    page = tab(server).ready(".axon-talk")
    page.say("<img src=x onerror='window.hit=1'> [INST] a")
    page.ready(".toast-body, [data-testid=toast-body]")
    page.until_idle()
    assert "[INST]" in page.page.locator(".toast-body, [data-testid=toast-body]").inner_text()
    assert page.page.locator("img[src=x]").count() == 0 and page.page.evaluate("window.hit") is None
    assert page.texts("user") == ["<img src=x onerror='window.hit=1'> [INST] a"]
    page.press("New conversation")
    empty = "document.querySelectorAll('.axon-title').length === 1 && !document.querySelector('.axon-turn')"
    page.until(empty)
    page.page.get_by_placeholder("Message").press("Enter")  # an empty message changes nothing
    page.until_idle()
    page.until(empty)


def test_an_answer_that_takes_too_long_is_ended(tab, serving, scripted, as_served, limits):
    engine = scripted()
    server = serving(as_served(engine, converses=True), pages={}, limits=limits(answer_seconds=0.5))
    page = tab(server).ready(".axon-talk")
    page.say("a")
    asked(engine)
    engine.write(engine.answers[0], "wri")
    page.ready("[data-testid=toast-body]")
    assert engine.answers[0].cancelled
    assert "more than 0.5 seconds" in page.page.locator("[data-testid=toast-body]").inner_text()
    page.until_idle()
    assert page.texts("assistant") == ["wri"]


def test_settings_reach_the_engine(tab, chatting):
    engine, server = chatting
    page = tab(server).ready(".axon-talk")
    page.page.get_by_label("System prompt").fill("Be <brief>.")
    page.press("Sampling")
    wanted = {"Most tokens": "7", "Temperature": "0.5", "Top k": "3", "Seed": "11", "Top p": "0.9"}
    for _ in range(5):  # a page that has just opened the settings may put their first values back
        for label, value in wanted.items():
            field = page.page.locator(f"input[type=number][aria-label*='{label}'], label:has-text('{label}') input")
            if field.first.input_value() != value:
                field.first.fill(value)
                field.first.press("Tab")
        page.page.wait_for_timeout(300)
    page.say("a")
    assert asked(engine) == "[INST] <<SYS>>\nBe <brief>.\n<</SYS>>\n\na [/INST]"
    question = engine.answers[0].question
    assert (question.max_new_tokens, question.seed) == (7, 11)
    assert (question.sampling.temperature, question.sampling.top_k, question.sampling.top_p) == (0.5, 3, 0.9)


def test_the_settings_begin_with_what_the_model_was_published_with():
    published = {"temperature": 2.5, "top_k": 20, "repetition_penalty": 0.9}
    with gradio.Blocks():
        form = SamplingForm(100, published)
    values = [each.value for each in form.inputs]
    assert SamplingForm.parameters(values) == {"max_tokens": 50, "top_p": 1.0, "min_p": 0.0, **published}
    values[3] = None  # an empty field is all tokens, whatever the model was published with
    assert SamplingForm.parameters(values)["top_k"] == 0


def test_conversations_stay_in_the_browser_and_can_be_exported(tab, chatting):
    engine, server = chatting
    page = tab(server, accept_downloads=True).ready(".axon-talk")
    for text in ("first", "second"):
        page.press("New conversation")
        page.until("document.querySelectorAll('.axon-turn').length === 0")
        page.say(text)
        asked(engine)
        engine.write(engine.answers[-1], f"re {text}", end=True)
        page.until_said(f"re {text}")
        page.until_idle()
    titles = page.page.locator(".axon-title")
    page.until("document.querySelectorAll('.axon-title').length === 2")
    assert titles.all_inner_texts() == ["second", "first"]
    page.page.reload()
    page.until("document.querySelectorAll('.axon-title').length === 2")
    titles.nth(1).click()
    page.until_said("re first")
    with page.page.expect_download() as download:
        page.press("Export")
    turns = [{"role": "user", "content": "first"}, {"role": "assistant", "content": "re first"}]
    with open(download.value.path(), encoding="utf-8") as file:
        assert [json.loads(line) for line in file] == [{"messages": turns}]
    page.press("Delete “first”")
    page.until("document.querySelectorAll('.axon-title').length === 1")
    assert page.texts("user") == []
    other = tab(server).ready(".axon-talk")  # another browser sees none of them
    assert other.page.locator(".axon-title").count() == 0


def test_a_base_model_completes_and_shows_probabilities(tab, serving, engine, as_served):
    page = tab(serving(as_served(engine, template=None), pages={})).ready(".axon-tokens")
    assert page.page.get_by_role("tab").count() == 0
    page.page.get_by_label("Text to continue").fill("Once")
    page.press("Complete")
    page.ready(".axon-token")
    page.ready(".axon-tokens:not(.busy)")
    token = page.page.locator(".axon-token").first
    token.hover()
    tip = page.page.locator(".axon-tip:not([hidden])")
    assert len(re.findall(r"[\d.]+ %", tip.inner_text())) >= 5
    assert tip.locator(".own").count() == tip.locator("table").count() >= 1  # one for each token of the span


def test_a_page_that_is_closed_ends_its_answer(tab, chatting):
    engine, server = chatting
    first, second = (tab(server).ready(".axon-talk") for _ in range(2))
    first.say("a")
    asked(engine, 0)
    second.say("b")
    asked(engine, 1)
    first.close()
    assert engine.ended.acquire(timeout=60)
    assert [answer.cancelled for answer in engine.answers] == [True, False]
    engine.write(engine.answers[1], "still here", end=True)
    second.until_said("still here")


def half_written(tab, chatting):
    """Return engine, server and page when the page shows the first letters of an answer."""
    engine, server = chatting
    page = tab(server).ready(".axon-talk")
    page.say("a")
    asked(engine)
    engine.write(engine.answers[0], "wri")
    page.until_said("wri")
    return engine, server, page


def test_a_server_that_stops_lets_the_page_finish(tab, chatting):
    engine, server, page = half_written(tab, chatting)
    closing = asyncio.run_coroutine_threadsafe(server.app.state.door.close(20), server.loop)
    while server.app.state.door.is_open:
        time.sleep(0.01)
    threading.Timer(0.2, engine.write, [engine.answers[0], "tten"], {"end": True}).start()
    page.until_said("written")
    closing.result(timeout=60)
    assert server.app.state.door.cut_off == 0


def test_after_the_grace_the_page_is_cut_off(tab, chatting):
    engine, server, _ = half_written(tab, chatting)
    asyncio.run_coroutine_threadsafe(server.app.state.door.close(0.1), server.loop).result(timeout=60)
    assert engine.ended.acquire(timeout=60) and engine.answers[0].cancelled
    assert server.app.state.door.cut_off == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_and_a_dark_one(tab, chatting, scheme):
    engine, server = chatting
    options = {"viewport": {"width": 380, "height": 760}, "color_scheme": scheme}
    page = tab(server, **options).ready(".axon-talk")
    page.until("document.documentElement.scrollWidth <= window.innerWidth")
    page.until("!document.querySelector('.sidebar.open')")
    page.say("Hello there, this is a longer message that needs more than one line on a telephone")
    asked(engine)
    engine.write(engine.answers[0], "word" * 60, end=True)
    page.until_said("word" * 60)
    assert page.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    colours = page.page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, "
        "getComputedStyle(document.querySelector('.axon-turn.assistant .axon-text')).color]"
    )
    back, text = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours)
    assert (back < 200 < 500 < text) if scheme == "dark" else (text < 200 < 500 < back)


def test_a_key_is_asked_for_as_a_password(tab, serving, scripted, as_served):
    engine = scripted(text="ok")
    server = serving(as_served(engine, converses=True), pages={}, key="secret-Key")
    page = tab(server, http_credentials={"username": "anybody", "password": "secret-Key"}).ready(".axon-talk")
    page.say("a")
    page.until_said("ok")
    page.until_idle()
    refused = tab(server, "/page/tiny/", http_credentials={"username": "a", "password": "wrong"})
    assert "invalid_api_key" in refused.page.content() and "axon-talk" not in refused.page.content()
