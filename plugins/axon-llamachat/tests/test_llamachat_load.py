"""Many clients at once: nothing finished is lost, nothing is mixed up, and nothing stays behind."""

from __future__ import annotations

import asyncio
import json
import re
import resource
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import NamedTuple

import httpx

from axon_core import ByteTokenizer, Request, complete

CLIENTS = 8
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


class Finished(NamedTuple):
    """An answer that a client has read to its end."""

    seed: int
    text: str
    reason: str


def connect(root: str) -> httpx.Client:
    return httpx.Client(base_url=root, timeout=60, verify=False)  # certificates take long to load, and are not used


def ask(http: httpx.Client, *, stream: bool, **asked) -> tuple[int, str, str]:
    """Ask for one completion; return its status, its whole text, and why it ended or the code of the error."""
    body = {"prompt": "ab", "max_tokens": 20, **asked, "stream": stream}
    answer = http.post("/v1/completions", json=body)
    if not stream or answer.status_code != 200:
        said = answer.json()
        first = said["choices"][0] if answer.status_code == 200 else None
        return (
            (200, first["text"], first["finish_reason"]) if first else (answer.status_code, "", said["error"]["code"])
        )
    assert answer.text.endswith("\n\n")
    *events, last = [line.removeprefix("data: ") for line in answer.text.split("\n\n")[:-1]]
    if last != "[DONE]":
        return 200, "", json.loads(last)["error"]["code"]
    choices = [json.loads(event)["choices"][0] for event in events]
    return 200, "".join(choice["text"] for choice in choices), choices[-1]["finish_reason"]


def texts(root: str) -> float:
    """How many texts the engine has."""
    lines = httpx.get(f"{root}/metrics", verify=False).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(("axon_running{", "axon_waiting{")))


def test_a_server_that_is_terminated_under_load_loses_no_answer(command, folder, model):
    """Eight clients ask without a pause: every request of before the signal is answered in full, or refused whole."""
    served = command(str(folder), "--memory", "1MB", "--rows", "8", "--grace", "60")
    signalled = threading.Event()

    answers: list[list[Finished]] = [[] for _ in range(CLIENTS)]

    def client(number: int) -> None:
        with connect(served.root) as http:
            ask_on(http, number, answers[number])

    def ask_on(http: httpx.Client, number: int, found: list[Finished]) -> None:
        for i in range(1000):
            seed, before = 1000 * number + i, not signalled.is_set()
            try:
                status, text, reason = ask(http, stream=bool(i % 2), seed=seed)
            except httpx.ConnectError:  # nobody listens any more
                assert signalled.is_set()
                return
            except httpx.TransportError:
                assert not before, "an accepted request was dropped"
                return
            if status == 503:
                assert reason == "stopping"
                return
            assert status == 200
            found.append(Finished(seed, text, reason))
        raise AssertionError("the server did not stop")

    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(client, number) for number in range(CLIENTS)]
        while sum(map(len, answers)) < 2 * CLIENTS and not any(each.done() for each in clients):
            time.sleep(0.01)
        signalled.set()
        served.process.send_signal(signal.SIGTERM)
        for each in clients:
            each.result()
    code, output = served.end()
    assert code == 0, output
    for one in (found[-1] for found in answers if found):  # the last of each client was being written at the signal
        (alone,) = complete(model, ByteTokenizer(), [Request(prompt="ab", max_new_tokens=20, seed=one.seed)])
        assert one.text == alone.text and one.reason == ("length" if alone.finish == "length" else "stop")
    assert sum(map(len, answers)) > 2 * CLIENTS


def test_what_the_grace_ends_is_told_to_each_and_counted(command, folder):
    served = command(str(folder), "--memory", "1MB", "--rows", "4", "--grace", "0.3")

    def client(number: int) -> str:
        few = number < 2
        asked = {"max_tokens": 4} if few else {"max_tokens": 250, "n": 16}
        with connect(served.root) as http:
            status, _, reason = ask(http, stream=bool(number % 2), seed=1, **asked)
        assert (status, reason) in {(200, "length"), (200, "stop"), (200, "stopping"), (503, "stopping")}
        return reason

    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(client, number) for number in range(CLIENTS)]
        while texts(served.root) < 6 * 16 and not any(each.done() for each in clients[2:]):
            time.sleep(0.01)
        served.process.send_signal(signal.SIGTERM)
        reasons = [each.result() for each in clients]
    code, output = served.end()
    assert code == 1
    assert int(re.search(r"(\d+) requests were ended", output)[1]) == reasons.count("stopping") > 0


def test_an_answer_that_is_finished_is_sent_after_the_grace(serving, scripted):
    """A client reads slowly: the engine has finished, and most of the text waits to be sent when the time is over."""
    engine = scripted()
    server = serving(engine)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        body = b'{"prompt": "a", "stream": true, "max_tokens": 201}'
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert engine.asked.acquire(timeout=2)
        for _ in range(200):
            engine.put(engine.answers[0], "a" * 100_000)
        engine.write(engine.answers[0], "b", end=True)
        closing = asyncio.run_coroutine_threadsafe(server.app.state.door.close(0.2), server.loop)
        time.sleep(0.6)
        connection.settimeout(5)
        received = bytearray()
        while not received.endswith(b"0\r\n\r\n"):
            received += connection.recv(1 << 20) or b"0\r\n\r\n"
    assert received.count(b"a" * 100_000) == 200 and b"data: [DONE]" in received
    closing.result(timeout=5)
    assert server.app.state.door.cut_off == 0


def test_a_body_that_does_not_arrive_does_not_delay_the_end(serving, scripted):
    server = serving(scripted())
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
        time.sleep(0.1)
        asyncio.run_coroutine_threadsafe(server.app.state.door.close(0.1), server.loop).result(timeout=5)
        assert connection.recv(1000).startswith(b"HTTP/1.1 503")
    assert server.app.state.door.cut_off == 1


def test_thousands_of_connections_leave_the_server_well(command, folder):
    """3,000 clients connect and say nothing, to a process that began with leave to open few files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        served = command(str(folder), "--memory", "1MB")
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
        where = httpx.URL(served.root)
        with ExitStack() as stack:
            for _ in range(3000):
                connection = stack.enter_context(socket.socket())
                connection.setblocking(False)
                connection.connect_ex((where.host, where.port))
        with connect(served.root) as http:
            assert ask(http, stream=False)[0] == 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    code, output = served.stop()
    assert code == 0 and "Error" not in output and "resource" not in output
