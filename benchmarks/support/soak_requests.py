"""Random requests to a server of a small model, what the core's own generator answers to them, and malformed ones."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from axon_core import CHAT_TEMPLATES, CausalLM, Key, Request, Sampling, Tokenizer, complete
from axon_core.generation import sample_tokens
from axon_core.text import Message

CONTEXT = 256
ROUNDING = 3e-6
"""How much float32 kernels that sum in another order may change a score."""

Body = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """A request that is answered; `stream` is left to whoever sends it."""

    path: str
    body: Body


@dataclass(frozen=True)
class Malformed:
    """A body that is refused, and with which status."""

    raw: bytes
    status: int = 400
    kind: str = "application/json"


MALFORMED = (
    Malformed(b""),
    Malformed(b"{"),
    Malformed(b"[1]"),
    Malformed(b"[" * 100_000),
    Malformed(b'{"prompt": "\xff"}'),
    Malformed(b'{"prompt": "a\\ud800"}'),
    Malformed(b'{"prompt": "a", "prompt": "b"}'),
    Malformed(b'{"prompt": NaN}'),
    Malformed(b'{"prompt": ""}'),
    Malformed(b'{"prompt": [300]}'),
    Malformed(b'{"prompt": "a", "max_tokens": -1}'),
    Malformed(b'{"prompt": "a", "max_tokens": 100000}'),
    Malformed(b'{"prompt": "a", "n": 1000000}'),
    Malformed(b'{"prompt": "a", "temperature": "hot"}'),
    Malformed(b'{"prompt": "a", "logit_bias": {"5": 1}}'),
    Malformed(b'{"prompt": "a", "unheard_of": 1}'),
    Malformed(b'{"prompt": "a", "model": "none"}', 404),
    Malformed(b'{"prompt": "' + b"a" * 5_000_000 + b'"}', 413),
    Malformed(b'{"prompt": "a"}', 415, "text/plain"),
)


def random_request(draw: random.Random) -> Asked:
    """Return a request with options of every kind; one in five is a chat."""
    body: Body = {
        "temperature": draw.choice([0, 0, 0.7, 1.2]),
        "top_p": draw.choice([1.0, 1.0, 0.8]),
        "repetition_penalty": draw.choice([1.0, 1.0, 1.2]),
        "seed": draw.randrange(100),
        "n": draw.choice([1, 1, 1, 1, 2, 3]),
        "stop": draw.choice([[], [], ["e"], ["xy", "a", "\n"]]),
    }
    if draw.random() < 0.3:
        body |= {"top_k": 5, "min_p": 0.01}
    length = draw.choice([1, 3, 8, 20, 60])
    said = draw.choice(["", "The same beginning of many", "Another beginning, longer than a block or two of tokens"])
    said += "".join(draw.choice("abcdefgh ") for _ in range(length))
    if draw.random() < 0.2:
        scores = {"logprobs": True, "top_logprobs": draw.randrange(4)} if draw.random() < 0.3 else {}
        messages = [{"role": "user", "content": said}]
        return Asked("/v1/chat/completions", body | scores | {"messages": messages, "max_tokens": draw.choice([1, 20])})
    body |= {"prompt": draw.choice([said, list(said.encode())]), "max_tokens": draw.choice([1, 4, 9, 30, 60])}
    if draw.random() < 0.3:
        body["logprobs"] = draw.randrange(4)
    if draw.random() < 0.1:
        body["echo"] = True
    return Asked("/v1/completions", body)


@dataclass(frozen=True)
class Generated:
    """A text by the core's own generator."""

    text: str
    finish: str
    logprobs: list[float]
    near_tie: bool
    """Whether rounding may have chosen one of its tokens."""


def generated(model: CausalLM, tokenizer: Tokenizer, asked: Asked) -> list[Generated]:
    """Return what the core's own generator answers, for each choice: one text at a time, without an engine."""
    body = asked.body
    chat = "messages" in body
    prompt, stop, before = body.get("prompt"), body["stop"], ""
    if chat:
        template = CHAT_TEMPLATES.build("llama2")
        prompt = template(tokenizer, [Message(**message) for message in body["messages"]])
        stop = [*stop, *template.markers]
    elif body.get("echo"):
        before = prompt if isinstance(prompt, str) else tokenizer.decode(prompt)
    sampling = Sampling(**{name: body[name] for name in Sampling.model_fields if name in body})
    found: list[Generated] = []
    for i in range(body["n"]):
        request = Request(
            prompt=prompt, max_new_tokens=body["max_tokens"], sampling=sampling, seed=body["seed"] + i, stop=tuple(stop)
        )
        (one,) = complete(model, tokenizer, [request])
        text = one.text.lstrip() if chat else before + one.text
        tie = is_near_tie(model, request.tokens(tokenizer), one.tokens, sampling, request.seed)
        found.append(Generated(text, "length" if one.finish == "length" else "stop", one.logprobs, tie))
    return found


def is_near_tie(model: CausalLM, prompt: list[int], tokens: list[int], sampling: Sampling, seed: int) -> bool:
    """Whether some token would be another one if the scores or the random number differed by rounding."""
    uniform = torch.rand(max(256, len(tokens)), generator=Key((seed, "sample")).generator())[: len(tokens)]
    row = [*prompt, *tokens]
    with torch.inference_mode():
        scores = model(torch.tensor([row]))[0, len(prompt) - 1 : -1]
    seen = torch.zeros(len(tokens), model.config.vocab_size, dtype=torch.bool)
    for place in range(len(tokens)):
        seen[place, row[: len(prompt) + place]] = True
    noise = torch.randn(3, *scores.shape, generator=torch.Generator().manual_seed(0)) * ROUNDING
    for change, moved in zip([0 * noise[0], *noise], (0, -ROUNDING, ROUNDING, 0), strict=True):
        chosen = sample_tokens(scores + change, sampling, (uniform + moved).clamp(0, 1 - 1e-7), seen)
        if chosen.tolist() != tokens:
            return True
    return False


def told(asked: Asked, answer: Body) -> Body:
    """Return what an answer says, whatever its number, its date and what was cached when it was computed."""
    chat = "messages" in asked.body
    choices = [
        (
            choice["message"]["content"] if chat else choice["text"],
            choice["finish_reason"],
            choice["logprobs"],
        )
        for choice in sorted(answer["choices"], key=lambda choice: choice["index"])
    ]
    return {"choices": choices, "tokens": (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"])}


def joined(asked: Asked, events: Sequence[Body]) -> Body:
    """Return the events of a whole stream as the one object that the same request gets without a stream."""
    chat = "messages" in asked.body
    choices: dict[int, Body] = {}
    usage: Body = {}
    for event in events:
        usage = event["usage"] or usage
        for part in event["choices"]:
            empty: Body = {"index": part["index"], "text": "", "logprobs": None, "finish_reason": None}
            one = choices.setdefault(part["index"], empty)
            one["text"] += part["delta"].get("content", "") if chat else part["text"]
            one["finish_reason"] = part["finish_reason"] or one["finish_reason"]
            for name, values in (part["logprobs"] or {}).items():
                if one["logprobs"] is None:
                    one["logprobs"] = {}
                one["logprobs"][name] = [*(one["logprobs"].get(name) or []), *values] if values is not None else None
    for one in choices.values():
        one["message"] = {"content": one["text"]}
    return {"choices": list(choices.values()), "usage": usage}


def token_logprobs(asked: Asked, choice: tuple[Any, ...]) -> list[float] | None:
    """Return the log-probabilities of a choice's new tokens (`told`), or None if it has none."""
    logprobs = choice[2]
    if logprobs is None:
        return None
    if "messages" in asked.body:
        return [entry["logprob"] for entry in logprobs["content"]]
    return logprobs["token_logprobs"]


def as_json(asked: Asked, *, stream: bool = False) -> bytes:
    """Return the body of a request."""
    options: Body = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    return json.dumps(asked.body | options).encode()
