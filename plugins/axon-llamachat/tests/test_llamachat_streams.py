"""Clients that leave, and a server that stops: answers end, others go on, and what was written arrives."""

from __future__ import annotations

import asyncio
import threading
import time

import httpx
import openai
import pytest

ASKED = {"model": "tiny", "prompt": "a", "max_tokens": 200}


def test_a_client_that_leaves_a_stream_ends_its_answer_alone(serving, scripted):
    engine = scripted()
    server = serving(engine)
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        streams = [client.completions.create(**ASKED, stream=True) for _ in range(2)]
        for answer in engine.answers:
            engine.write(answer, "a")
        assert [next(stream).choices[0].text for stream in streams] == ["a", "a"]
        streams[0].close()
        assert engine.ended.acquire(timeout=2)
        assert [answer.cancelled for answer in engine.answers] == [True, False]
        engine.write(engine.answers[1], "bc", end=True)
        assert "".join(event.choices[0].text for event in streams[1]) == "bc"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_before_the_first_token_ends_its_answer(serving, scripted, stream):
    engine = scripted()
    server = serving(engine)
    with pytest.raises(httpx.ReadTimeout), httpx.Client(timeout=0.2) as http:
        with http.stream("POST", f"{server.url}/completions", json={**ASKED, "stream": stream}) as response:
            response.read()
    assert engine.ended.acquire(timeout=2) and engine.answers[0].cancelled


def test_leaving_frees_the_engine(server, engine):
    before = engine.report().memory.used
    for stream in (False, True):
        with pytest.raises(httpx.ReadTimeout), httpx.Client(timeout=0.05) as http:
            asked = {"prompt": "abc" * 10, "max_tokens": 220, "n": 8, "stream": stream, "temperature": 5.0}
            with http.stream("POST", f"{server.url}/completions", json=asked) as response:
                time.sleep(0.1)
                response.read()
                raise httpx.ReadTimeout("the stream was fast")
    deadline = time.monotonic() + 3
    while (report := engine.report()).running or report.waiting or report.memory.used > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_every_stream_ends_with_done(server):
    for path, asked in (
        ("completions", {"prompt": "a"}),
        ("chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
    ):
        answer = httpx.post(f"{server.url}/{path}", json={**asked, "max_tokens": 3, "stream": True})
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = answer.text.split("\n\n")
        assert events[-2:] == ["data: [DONE]", ""] and all(event.startswith("data: {") for event in events[:-2])


def test_an_error_takes_the_place_of_done(serving, scripted, model_failed):
    engine = scripted()
    server = serving(engine)
    with httpx.stream("POST", f"{server.url}/completions", json={**ASKED, "stream": True}) as response:
        engine.answers[0].fail(model_failed("no"))
        events = response.read().decode().split("\n\n")
    assert events[0].startswith('data: {"error":') and "[DONE]" not in events[-1] and len(events) == 2


def test_a_closed_door_lets_those_inside_finish(serving, scripted):
    engine = scripted()
    server = serving(engine)
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        stream = client.completions.create(**ASKED, stream=True)
        closing = asyncio.run_coroutine_threadsafe(server.app.state.door.close(5), server.loop)
        while server.app.state.door.is_open:
            time.sleep(0.01)
        with pytest.raises(openai.InternalServerError) as raised:
            client.completions.create(**ASKED)
        assert (raised.value.status_code, raised.value.code) == (503, "stopping")
        assert httpx.get(f"{server.root}/health").status_code == 503
        engine.write(engine.answers[0], "ab", end=True)
        assert "".join(event.choices[0].text for event in stream) == "ab"
        assert closing.result(timeout=2) is None and server.app.state.door.cut_off == 0


def test_after_the_grace_streams_are_told(serving, scripted):
    engine = scripted()
    server = serving(engine)
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        stream = client.completions.create(**ASKED, stream=True)
        failed = []

        def whole() -> None:
            with pytest.raises(openai.InternalServerError) as raised:
                client.completions.create(**ASKED)
            failed.append(raised.value.code)

        thread = threading.Thread(target=whole)
        thread.start()
        assert engine.asked.acquire(timeout=2) and engine.asked.acquire(timeout=2)
        asyncio.run_coroutine_threadsafe(server.app.state.door.close(0.1), server.loop).result(timeout=3)
        with pytest.raises(openai.APIError, match="stopping"):
            list(stream)
        thread.join()
        assert failed == ["stopping"] and server.app.state.door.cut_off == 2
        assert all(answer.cancelled for answer in engine.answers)


def test_metrics(server, serving, scripted):
    httpx.post(f"{server.url}/completions", json={"prompt": "abc", "max_tokens": 5})
    httpx.get(f"{server.root}/some/where")
    text = httpx.get(f"{server.root}/metrics").text
    numbers = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(numbers['axon_requests_total{path="/v1/completions",status="200"}']) >= 1
    assert float(numbers['axon_requests_total{path="other",status="404"}']) >= 1 and "/some/where" not in text
    assert float(numbers['axon_tokens_total{kind="generated",model="tiny"}']) >= 5
    assert float(numbers['axon_time_to_first_token_seconds_count{model="tiny"}']) >= 1
    assert float(numbers['axon_time_between_tokens_seconds_count{model="tiny"}']) >= 4
    assert "python_info" not in text  # a registry of its own
    text = httpx.get(f"{serving(scripted()).root}/metrics").text
    for name, value in {
        "running": 1,
        "waiting": 2,
        "memory_total_bytes": 1000,
        "memory_used_bytes": 500,
        "memory_kept_bytes": 250,
        "preemptions_total": 8,
    }.items():
        assert f'axon_{name}{{model="tiny"}} {value}.0' in text
