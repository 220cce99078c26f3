"""A long run of `axon serve`: random requests, sixteen at a time, whose answers must be those of the requests alone.

    python benchmarks/serve_soak.py --requests 10000
    python benchmarks/serve_soak.py --minutes 30

A small model, in memory that is too small for sixteen texts, so that some are preempted. Four requests in five are read
to the end, as a stream or as one object; the others are left in the middle, given up before the first token, broken off
within their body, or malformed. A finished answer is compared with the one that the idle server gave to the request
before the load, bit for bit with its log-probabilities. That one is compared with the core's own generator, which has
no engine: the same text, unless rounding decides between two tokens, and log-probabilities within 1e-4.

It fails at the first answer that differs; at the end if the engine still holds blocks; or if the memory of the process,
measured after each round when all have left, has grown by more than 1 % since a tenth of the requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch
from support.servers import Server
from support.soak_requests import (
    CONTEXT,
    MALFORMED,
    Asked,
    as_json,
    generated,
    joined,
    random_request,
    token_logprobs,
    told,
)

from axon_core import ByteTokenizer
from axon_xllama import XLlama

AT_ONCE = 16
JSON = {"Content-Type": "application/json"}


@dataclass
class Load:
    """What is asked, what is known of it, and what has happened so far."""

    root: str
    draw: random.Random
    pool: list[Asked]
    alone: list[dict[str, Any]]
    counts: Counter[str] = field(default_factory=Counter[str])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000, help="how many, if no time is given")
    parser.add_argument("--minutes", type=float, help="how long to ask")
    parser.add_argument("--pool", type=int, default=500, help="how many of them differ")
    parser.add_argument("--rounds", type=int, default=10, help="how often memory is measured")
    parser.add_argument("--seed", type=int, default=0, help="of the requests")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    pool = [random_request(draw) for _ in range(options.pool)]
    model = small_model()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "small"
        model.save(folder, ByteTokenizer())
        command = [sys.executable, "-m", "axon_core", "serve", str(folder), "--port", "{port}"]
        command += ["--memory", "160KB", "--rows", str(AT_ONCE)]
        with Server(command, environment={"OMP_NUM_THREADS": "1"}) as server:
            load = Load(server.root, draw, pool, answers_alone(server.root, model, pool))
            soak(server, load, options)
            assert server.terminate() == 0, server.tail()
            assert "Error" not in server.tail(1000), server.tail(1000)


def small_model() -> XLlama:
    """Return a model with random weights, sharp enough that its texts differ."""
    torch.manual_seed(0)
    model = XLlama.build(vocab_size=258, context=CONTEXT, dim=32, n_layers=2, n_heads=4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.ndim > 1 else 1)
    return model.eval()


def answers_alone(root: str, model: XLlama, pool: Sequence[Asked]) -> list[dict[str, Any]]:
    """Return what the idle server answers to each request, after comparing it with the core's own generator."""
    found: list[dict[str, Any]] = []
    texts = ties = 0
    with httpx.Client(base_url=root, timeout=None) as http:
        for asked in pool:
            response = http.post(asked.path, content=as_json(asked), headers=JSON)
            assert response.status_code == 200, (asked, response.text)
            found.append(told(asked, response.json()))
            for choice, expected in zip(found[-1]["choices"], generated(model, ByteTokenizer(), asked), strict=True):
                texts += 1
                if choice[:2] != (expected.text, expected.finish):
                    assert expected.near_tie, (asked, choice, expected)
                    ties += 1
                elif (own := token_logprobs(asked, choice)) is not None:
                    new = torch.tensor(own[len(own) - len(expected.logprobs) :])
                    assert torch.allclose(new, torch.tensor(expected.logprobs), atol=1e-4), asked
    say(f"{len(pool)} requests alone, {texts} texts: all but {ties} near ties are the core generator's")
    return found


def soak(server: Server, load: Load, options: argparse.Namespace) -> None:
    """Ask in rounds, and compare the memory after the last with that after a tenth of the requests."""
    start, asked, memory = time.monotonic(), 0, dict[int, int]()  # by how many were asked before
    for number in range(1, options.rounds + 1):
        if options.minutes is None:
            end, most = float("inf"), options.requests * number // options.rounds - asked
        else:
            end, most = start + 60 * options.minutes * number / options.rounds, sys.maxsize
        asked += asyncio.run(ask(load, end, most))
        figures = asyncio.run(idle(server.root))
        memory[asked] = server.resident()
        preemptions = figures["axon_preemptions_total"]
        say(
            f"{time.monotonic() - start:6.0f} s: {asked:,} asked, {preemptions:,.0f} preemptions, "
            f"{figures['axon_memory_kept_bytes']:,.0f} bytes kept, {memory[asked]:,} resident"
        )
    warm = next(number for number in memory if number >= asked / 10)
    grown = memory[asked] / memory[warm] - 1
    print(json.dumps({"asked": asked, **load.counts, "seconds": time.monotonic() - start, "memory": memory}))
    print(f"the process has grown by {grown:.2%} since {warm:,} requests")
    assert grown < 0.01, "the process has grown"
    assert preemptions > 0, "no text was preempted"


async def ask(load: Load, end: float, most: int) -> int:
    """Send up to `most` requests until `end`, sixteen at a time, and return how many."""
    asked = 0

    async def client(http: httpx.AsyncClient) -> None:
        nonlocal asked
        while asked < most and time.monotonic() < end:
            asked += 1
            await one(load, http)

    limits = httpx.Limits(max_connections=None, keepalive_expiry=2)  # the server closes them after 5 seconds
    async with httpx.AsyncClient(base_url=load.root, timeout=None, limits=limits) as http, asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(client(http))
    return asked


async def one(load: Load, http: httpx.AsyncClient) -> None:
    """Send one request: read its answer, leave it, break it off, or have it refused."""
    number = load.draw.randrange(len(load.pool))
    asked, chance = load.pool[number], load.draw.random()
    if chance < 0.8:
        answer = await (streamed if load.draw.random() < 0.5 else whole)(http, asked)
        assert told(asked, answer) == load.alone[number], (asked, answer, load.alone[number])
        kind = "finished"
    elif chance < 0.88:
        await left(http, asked, load.draw.randrange(6))
        kind = "left"
    elif chance < 0.93:
        await given_up(http, asked, load.draw.random() * 0.05)
        kind = "given_up"
    elif chance < 0.96:
        await broken_off(load.root, as_json(asked), load.draw.random())
        kind = "broken_off"
    else:
        wrong = load.draw.choice(MALFORMED)
        headers = {"Content-Type": wrong.kind}
        async with httpx.AsyncClient(base_url=load.root, timeout=None) as other:
            response = await other.post("/v1/completions", content=wrong.raw, headers=headers)
        assert response.status_code == wrong.status, (wrong.raw[:100], response.text)
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        kind = "malformed"
    load.counts[kind] += 1


async def whole(http: httpx.AsyncClient, asked: Asked) -> dict[str, Any]:
    """Return the answer as one object."""
    response = await http.post(asked.path, content=as_json(asked), headers=JSON)
    assert response.status_code == 200, (asked, response.text)
    return response.json()


async def streamed(http: httpx.AsyncClient, asked: Asked) -> dict[str, Any]:
    """Return the answer of a stream, joined."""
    async with http.stream("POST", asked.path, content=as_json(asked, stream=True), headers=JSON) as response:
        text = (await response.aread()).decode()
    events = text.split("\n\n")
    assert response.status_code == 200 and events[-2:] == ["data: [DONE]", ""], (asked, text)
    return joined(asked, [json.loads(event.removeprefix("data: ")) for event in events[:-2]])


async def left(http: httpx.AsyncClient, asked: Asked, after: int) -> None:
    """Read so many pieces of a stream, and leave."""
    async with http.stream("POST", asked.path, content=as_json(asked, stream=True), headers=JSON) as response:
        async for _ in response.aiter_bytes():
            after -= 1
            if after < 0:
                return


async def given_up(http: httpx.AsyncClient, asked: Asked, seconds: float) -> None:
    """Wait so long for an answer, and leave."""
    try:
        async with asyncio.timeout(seconds):
            await whole(http, asked)
    except TimeoutError:
        pass


async def broken_off(root: str, body: bytes, share: float) -> None:
    """Send a part of a request, and close or reset the connection."""
    url = httpx.URL(root)
    _, writer = await asyncio.open_connection(url.host, url.port)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    sent = f"{head}Content-Type: application/json\r\n\r\n".encode() + body
    writer.write(sent[: int(len(sent) * share)])
    await writer.drain()
    if share < 0.5:
        linger = struct.pack("ii", 1, 0)  # a reset, instead of an end
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.close()


async def idle(root: str) -> dict[str, float]:
    """Wait until the server has nothing to do, and return its figures; fail if it still holds memory then."""
    async with httpx.AsyncClient(base_url=root, timeout=None) as http:
        for _ in range(200):
            text = (await http.get("/metrics")).text
            lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
            figures = {name.partition("{")[0]: float(value) for name, value in lines}
            if not any(figures[f"axon_{name}"] for name in ("running", "waiting", "memory_used_bytes")):
                return figures
            await asyncio.sleep(0.05)
    raise AssertionError(f"texts were left behind: {figures}")


def say(text: str) -> None:
    """Tell how far it has come."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
