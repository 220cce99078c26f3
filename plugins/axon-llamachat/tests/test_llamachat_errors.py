"""What clients are told: the exact class of error that `openai` raises, retries and time-outs."""

from __future__ import annotations

import asyncio
import time

import httpx
import openai
import pytest

MESSAGES = [{"role": "user", "content": "Hello"}]


def connect(server, **options) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url, api_key="none", **{"max_retries": 0, "timeout": 5, **options})


@pytest.fixture
def client(server):
    with connect(server) as made:
        yield made


@pytest.mark.parametrize(
    ("extra", "param", "code"),
    [
        ({"frequency_penalty": 0.5}, "frequency_penalty", "unsupported_parameter"),
        ({"presence_penalty": -1}, "presence_penalty", "unsupported_parameter"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported_parameter"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        ({"suffix": "."}, "suffix", "unsupported_parameter"),
        ({"max_token": 3}, "max_token", "unknown_parameter"),
        ({"temperature": -1}, "temperature", None),
        ({"top_p": 1.5}, "top_p", None),
        ({"top_k": -1}, "top_k", None),
        ({"min_p": "0.1"}, "min_p", None),
        ({"n": 0}, "n", None),
        ({"n": 2.5}, "n", None),
        ({"logprobs": 21}, "logprobs", None),
        ({"stop": ""}, "stop.0", None),
        ({"seed": 2**63}, None, None),
        ({"max_tokens": 0}, None, None),
        ({"max_tokens": 246}, "prompt", "context_length_exceeded"),
        ({"prompt": ""}, "prompt", None),
        ({"prompt": []}, "prompt", None),
        ({"prompt": [True]}, "prompt", None),
        ({"prompt": [1, 300]}, None, None),
        ({"prompt": [1, -1]}, "prompt", None),
        ({"prompt": [[1], []]}, "prompt", None),
        ({"prompt": ["a", 1]}, "prompt", None),
        ({"n": 128, "prompt": ["a", "b"]}, "prompt", None),
        ({"stream_options": {"include_usage": True}}, None, None),
    ],
)
def test_a_wrong_completion_is_refused_by_name(client, extra, param, code):
    with pytest.raises(openai.BadRequestError) as raised:
        client.completions.create(model="tiny", prompt="The cat sat", extra_body=extra)
    assert (raised.value.param, raised.value.code) == (param, code)
    assert raised.value.type == "invalid_request_error"
    assert next(iter(extra)) in raised.value.message or param == "prompt" or param is None


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "a"}}, "audio"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"store": True}, "store"),
        ({"frequency_penalty": 1}, "frequency_penalty"),
        ({"top_logprobs": 2}, None),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, None),
        ({"messages": [*MESSAGES, {"role": "assistant", "content": "a"}]}, "messages"),
        ({"messages": [MESSAGES[0], MESSAGES[0]]}, "messages"),
        ({"messages": [{**MESSAGES[0], "name": "Ann"}]}, "messages.0"),
        ({"messages": [{"role": "user", "content": "a" * 300}]}, "messages"),
        ({"max_tokens": 2, "max_completion_tokens": 3}, None),
    ],
)
def test_a_wrong_chat_is_refused_by_name(client, extra, param):
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model="tiny", messages=MESSAGES, extra_body=extra)
    assert raised.value.param == param or param is None
    assert raised.value.message


def test_parameters_that_change_nothing_are_accepted(client):
    neutral = {
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logit_bias": {},
        "store": False,
        "user": "ann",
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "parallel_tool_calls": True,
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "audio": None,
        "stop": None,
        "unheard_of": None,
    }
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=1, extra_body=neutral)
    # a message of an answer, as the client gives it back, is a message of the next question
    said = answer.choices[0].message.to_dict(exclude_unset=False) | {"content": "a"}
    more = [*MESSAGES, said, {"role": "user", "content": [{"type": "text", "text": "b"}]}]
    assert client.chat.completions.create(model="tiny", messages=more, max_tokens=1).usage.completion_tokens == 1


def test_what_is_not_there_is_a_404(client, server):
    with pytest.raises(openai.NotFoundError) as raised:
        client.completions.create(model="gpt", prompt="a")
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError, match="no embeddings") as raised:
        client.embeddings.create(model="tiny", input="a")
    with pytest.raises(openai.NotFoundError, match="there is no /v1/files"):
        client.files.list()
    assert httpx.get(f"{server.url}/completions").status_code == 405
    assert "GET" in httpx.get(f"{server.url}/completions").json()["error"]["message"]


def test_a_full_queue_is_repeated_after_the_time_it_says(serving, scripted):
    engine = scripted(text="ab", full=2)
    with connect(serving(engine), max_retries=2) as client:
        begin = time.perf_counter()
        assert client.completions.create(model="tiny", prompt="a").choices[0].text == "ab"
        assert time.perf_counter() - begin > 1.9  # twice the second of Retry-After
    engine = scripted(full=1)
    with connect(serving(engine)) as client, pytest.raises(openai.RateLimitError) as raised:
        client.completions.create(model="tiny", prompt="a")
    assert (raised.value.code, raised.value.response.headers["retry-after"]) == ("queue_full", "1")


def test_of_several_prompts_all_are_asked_or_none(serving, scripted):
    engine = scripted()
    submit, engine.submit = engine.submit, lambda question: submit(question)

    def second_fails(question):
        if engine.answers:
            engine._full = 1
        return submit(question)

    engine.submit = second_fails
    with connect(serving(engine)) as client, pytest.raises(openai.RateLimitError):
        client.completions.create(model="tiny", prompt=["a", "b"])
    assert [answer.cancelled for answer in engine.answers] == [True]


def test_a_time_out_of_the_client_cancels(serving, scripted):
    engine = scripted()
    with connect(serving(engine), timeout=0.3) as client, pytest.raises(openai.APITimeoutError):
        client.completions.create(model="tiny", prompt="a")
    assert engine.ended.acquire(timeout=2) and engine.answers[0].cancelled


def test_an_answer_that_takes_too_long_ends(serving, scripted, limits):
    engine = scripted()
    with connect(serving(engine, limits=limits(answer_seconds=0.2)), max_retries=2) as client:
        with pytest.raises(openai.InternalServerError, match=r"more than 0\.2 seconds") as raised:
            client.completions.create(model="tiny", prompt="a")
        assert raised.value.status_code == 504 and len(engine.answers) == 1  # not repeated
        with pytest.raises(openai.APIError, match=r"more than 0\.2 seconds"):
            list(client.completions.create(model="tiny", prompt="a", stream=True))
    assert all(answer.cancelled for answer in engine.answers)


def test_an_error_within_a_stream_is_an_error(serving, scripted, model_failed):
    engine = scripted()
    with connect(serving(engine)) as client:
        stream = client.completions.create(model="tiny", prompt="a", stream=True)
        engine.write(engine.answers[0], "a")
        assert next(stream).choices[0].text == "a"
        engine.answers[0].fail(model_failed("it has the text of another"))
        with pytest.raises(openai.APIError, match="the model failed in a step") as raised:
            next(stream)
        assert raised.value.code == "model_failed" and "another" not in str(raised.value)


def test_an_error_of_the_server_is_not_a_text_of_python(serving, scripted, caplog):
    engine = scripted()
    engine.submit = lambda question: 1 / 0
    with connect(serving(engine)) as client, pytest.raises(openai.InternalServerError) as raised:
        client.completions.create(model="tiny", prompt="a")
    assert raised.value.code == "internal_error" and "zero" not in str(raised.value)
    assert "ZeroDivisionError" in caplog.text


def test_a_server_that_is_gone_is_a_connection_error(serving, scripted):
    server = serving(scripted())
    with connect(server) as client:
        server.end()
        with pytest.raises(openai.APIConnectionError):
            client.models.list()


def test_the_asynchronous_client(server, serving, scripted):
    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=5) as client:
            asked = {"model": "tiny", "messages": MESSAGES, "max_tokens": 10, "seed": 2}
            whole, stream = await asyncio.gather(
                client.chat.completions.create(**asked), client.chat.completions.create(**asked, stream=True)
            )
            pieces = [event.choices[0].delta.content or "" async for event in stream]
            assert "".join(pieces) == whole.choices[0].message.content
            with pytest.raises(openai.NotFoundError):
                await client.completions.create(model="gpt", prompt="a")
        slow = serving(scripted())
        async with openai.AsyncOpenAI(base_url=slow.url, api_key="none", max_retries=0, timeout=0.2) as client:
            with pytest.raises(openai.APITimeoutError):
                await client.completions.create(model="tiny", prompt="a")

    asyncio.run(main())
