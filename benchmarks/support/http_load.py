"""A client that loads a server of OpenAI's completions with streams, and notes when each token arrives."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass(frozen=True)
class Ask:
    """One request."""

    prompt: list[int] | str
    """Its tokens, or their text for a server that takes nothing else."""
    new_tokens: int
    """How many tokens to answer."""
    at: float = 0.0
    """When it is sent in an open loop, in seconds."""


@dataclass
class Heard:
    """What came of one request; times are in seconds since the beginning of the load."""

    asked: float
    """When it was sent."""
    new_tokens: int
    """How many tokens it asked for."""
    times: list[float] = field(default_factory=list[float])
    """When each event with text arrived."""
    tokens: int | None = None
    """How many tokens the answer has, as its usage says; None if it did not end."""
    cached: int = 0
    """How many tokens of its prompt were found in memory, as its usage says."""
    error: str | None = None
    """Why it failed."""


@dataclass(frozen=True)
class Load:
    """A load: `streams` clients that ask without a pause until `seconds` have passed, or each request at its time.

    With times, `seconds` is the longest wait for answers after the last request.
    """

    asks: list[Ask]
    seconds: float
    streams: int | None = None


def mixed(draw: random.Random, vocab_size: int, context: int, n: int) -> list[Ask]:
    """Return `n` requests whose prompts have 16 to 512 tokens and whose answers 16 to 128, most of them short.

    Both lengths are uniform in their logarithm, and a quarter of a shorter context at most.
    """
    longest, most = min(512, context // 2), min(128, context // 4)

    def length(least: int, greatest: int) -> int:
        return round(least * (greatest / least) ** draw.random())

    return [
        Ask([draw.randrange(3, vocab_size) for _ in range(length(16, longest))], length(16, most)) for _ in range(n)
    ]


def arrivals(draw: random.Random, asks: Sequence[Ask], rate: float) -> list[Ask]:
    """Return the requests with the times of a Poisson process of `rate` a second."""
    now, found = 0.0, list[Ask]()
    for ask in asks:
        now += draw.expovariate(rate)
        found.append(Ask(ask.prompt, ask.new_tokens, now))
    return found


def client(root: str, body: dict[str, Any]) -> Callable[[Load], list[Heard]]:
    """Return the function that puts a load on the server at `root`; every request has the fields of `body`."""

    def put(load: Load) -> list[Heard]:
        return asyncio.run(_put(root, body, load))

    return put


async def _put(root: str, body: dict[str, Any], load: Load) -> list[Heard]:
    found: list[Heard] = []
    async with httpx.AsyncClient(base_url=root, timeout=None, limits=httpx.Limits(max_connections=None)) as http:
        start = time.perf_counter()

        async def ask(one: Ask) -> None:
            heard = Heard(time.perf_counter() - start, one.new_tokens)
            found.append(heard)
            try:
                await _ask(http, body, one, heard, start)
            except (httpx.HTTPError, ValueError) as error:
                heard.error = f"{type(error).__name__}: {error}"

        async def stream(asks: Sequence[Ask]) -> None:
            for one in asks:
                await ask(one)

        async def later(one: Ask) -> None:
            await asyncio.sleep(one.at - (time.perf_counter() - start))
            await ask(one)

        if load.streams is None:
            work, end = [later(one) for one in load.asks], load.asks[-1].at + load.seconds
        else:
            work, end = [stream(load.asks[i :: load.streams]) for i in range(load.streams)], load.seconds
        tasks = [asyncio.create_task(one) for one in work]
        _, unfinished = await asyncio.wait(tasks, timeout=end)
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return found


async def _ask(http: httpx.AsyncClient, body: dict[str, Any], one: Ask, heard: Heard, start: float) -> None:
    """Send one request, and note its events."""
    asked = body | {"prompt": one.prompt, "max_tokens": one.new_tokens, "temperature": 0, "stream": True}
    rest = b""
    async with http.stream("POST", "/v1/completions", json=asked) as response:
        if response.status_code != 200:
            raise ValueError(f"status {response.status_code}: {(await response.aread())[:300]!r}")
        async for piece in response.aiter_bytes():
            now = time.perf_counter() - start
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                if line.startswith(b"data: {"):
                    _note(json.loads(line[6:]), heard, now)
    if heard.tokens is None:  # the server counts none: each event has one
        heard.tokens = len(heard.times)


def _note(event: dict[str, Any], heard: Heard, now: float) -> None:
    if "error" in event:
        raise ValueError(str(event["error"]))
    if any(choice.get("text") for choice in event.get("choices", ())):
        heard.times.append(now)
    if usage := event.get("usage"):
        heard.tokens = usage["completion_tokens"]
        heard.cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
