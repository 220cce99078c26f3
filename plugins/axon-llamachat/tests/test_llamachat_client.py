"""The official `openai` client against a server: models, completions, chats, streams."""

from __future__ import annotations

import httpx
import openai
import pytest

from axon_core import ByteTokenizer, Request, Sampling, complete
from axon_core.text import CHAT_TEMPLATES, Message

PROMPT = "The cat sat"
MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as made:
        yield made


def alone(model, prompt, **options) -> str:
    """What `axon generate` writes."""
    return complete(model, ByteTokenizer(), [Request(prompt=prompt, **options)])[0].text


def test_models(client):
    (found,) = client.models.list().data
    assert (found.id, found.object, found.owned_by) == ("tiny", "model", "axon")
    assert client.models.retrieve("tiny") == found
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
        client.models.retrieve("other")


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, Sampling(temperature=0.6, top_k=20)),
        ({"temperature": None, "top_k": None}, Sampling(temperature=0.6, top_k=20)),
        ({"temperature": 1.0}, Sampling(temperature=1.0, top_k=20)),
        ({"top_k": 0, "top_p": 0.9}, Sampling(temperature=0.6, top_p=0.9)),
    ],
    ids=str,
)
def test_a_request_that_does_not_say_samples_as_the_model_was_published(serving, as_served, scripted, asked, found):
    engine = scripted(text="a")
    server = serving(as_served(engine, sampling={"temperature": 0.6, "top_k": 20}))
    for path, body in (("completions", {"prompt": PROMPT}), ("chat/completions", {"messages": MESSAGES})):
        assert httpx.post(f"{server.url}/{path}", json=body | asked).status_code == 200
    assert [answer.question.sampling for answer in engine.answers] == [found, found]


def test_a_completion_is_what_axon_generates(client, model):
    answer = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=20, seed=3, temperature=0.7, top_p=0.9, extra_body={"top_k": 50}
    )
    sampling = Sampling(temperature=0.7, top_p=0.9, top_k=50)
    (choice,) = answer.choices
    assert choice.text == alone(model, PROMPT, max_new_tokens=20, seed=3, sampling=sampling)
    assert (answer.object, choice.index, choice.finish_reason) == ("text_completion", 0, "length")
    assert answer.usage.to_dict() == {
        "prompt_tokens": 11,
        "completion_tokens": 20,
        "total_tokens": 31,
        "prompt_tokens_details": {"cached_tokens": answer.usage.prompt_tokens_details.cached_tokens},
    }


def test_a_stream_is_the_completion_in_pieces(client):
    asked = {"model": "tiny", "prompt": PROMPT, "max_tokens": 20, "seed": 3}
    whole = client.completions.create(**asked)
    events = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert len({(event.id, event.created) for event in events}) == 1
    assert "".join(event.choices[0].text for event in events[:-1]) == whole.choices[0].text
    assert [event.choices[0].finish_reason for event in events[:-1]] == [None] * (len(events) - 2) + ["length"]
    assert all(event.usage is None for event in events[:-1])
    assert events[-1].choices == [] and events[-1].usage.total_tokens == whole.usage.total_tokens


def test_a_chat_uses_the_models_template(client, model):
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, max_completion_tokens=20, seed=1)
    prompt = CHAT_TEMPLATES.build("llama2")(ByteTokenizer(), [Message(role="user", content="Hello")])
    text = alone(model, prompt, max_new_tokens=20, seed=1).lstrip()
    assert answer.choices[0].message.content == text
    assert (answer.object, answer.choices[0].message.role) == ("chat.completion", "assistant")
    assert answer.usage.prompt_tokens == len(prompt)


def test_a_chat_in_pieces(client):
    asked = {"model": "tiny", "messages": MESSAGES, "max_completion_tokens": 20, "seed": 1}
    whole = client.chat.completions.create(**asked)
    events = list(client.chat.completions.create(**asked, stream=True))
    deltas = [event.choices[0].delta for event in events]
    assert (deltas[0].role, deltas[0].content) == ("assistant", "")
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    assert deltas[-1].to_dict() == {} and events[-1].choices[0].finish_reason == "length"
    assert {event.object for event in events} == {"chat.completion.chunk"}
