"""Clients that mean harm: nothing takes the server down, makes it wait, or shows another client's text."""

from __future__ import annotations

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import httpx
import openai
import pytest

from axon_core import ByteTokenizer, Request, complete

BODY = json.dumps({"prompt": "a", "max_tokens": 1}).encode()
SECOND = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
AS_CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)


def head(*fields: bytes, version: bytes = b"1.1") -> bytes:
    given = [b"Host: localhost\r\n", b"Content-Type: application/json\r\n", *fields]
    return b"POST /v1/completions HTTP/" + version + b"\r\n" + b"".join(given) + b"\r\n"


def exchange(server, data: bytes, seconds: float = 2.0) -> bytes:
    """What the server sends until it closes the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as connection:
        connection.sendall(data)
        received = b""
        with suppress(ConnectionResetError):  # as the server has not read all of `data`
            while piece := connection.recv(1 << 16):
                received += piece
        return received


def closes(connection: socket.socket, seconds: float = 2.0) -> bool:
    """Whether the server closes it soon."""
    connection.settimeout(seconds)
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        return False
    return True


def is_well(server) -> bool:
    answer = httpx.post(f"{server.url}/completions", json={"prompt": "a", "max_tokens": 2}, timeout=5)
    return answer.status_code == 200


@pytest.fixture(autouse=True)
def server_survives(request):
    yield
    if "server" in request.fixturenames:
        assert is_well(request.getfixturevalue("server"))


@pytest.mark.parametrize(
    "data",
    [
        head(CHUNKED, LENGTH) + AS_CHUNKS,
        head(LENGTH, CHUNKED) + AS_CHUNKS,
        head(LENGTH, CHUNKED) + b"0\r\n\r\n",
        head(CHUNKED, CHUNKED) + AS_CHUNKS,
        head(b"Transfer-Encoding: xchunked\r\n") + AS_CHUNKS,
        head(b"Transfer-Encoding: chunked, identity\r\n") + AS_CHUNKS,
        head(b"Transfer-Encoding : chunked\r\n") + AS_CHUNKS,
        head(b"Transfer-Encoding:\x0bchunked\r\n") + AS_CHUNKS,
        head(CHUNKED, version=b"1.0") + AS_CHUNKS,
        head(LENGTH, b"Content-Length: 0\r\n") + BODY,
        head(b"Content-Length: 5, 6\r\n") + BODY,
        head(b"Content-Length: +5\r\n") + BODY,
        head(b"Content-Length: -5\r\n") + BODY,
        head(b"Content-Length: 0x5\r\n") + BODY,
        head(b"Content-Length : 5\r\n") + BODY,
        head(CHUNKED) + b"-1\r\n" + BODY,
        head(CHUNKED) + b"0x5\r\n" + BODY,
        head(CHUNKED) + b"ffffffffffffffffffffff\r\n" + BODY,
        head(b"X: a\x00b\r\n", LENGTH) + BODY,
        head(b"X: a\rb\r\n", LENGTH) + BODY,
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_a_request_of_two_meanings_is_refused_and_its_connection_closed(server, data):
    received = exchange(server, data + SECOND)
    assert received.startswith(b"HTTP/1.1 400") and received.count(b"HTTP/1.1") == 1
    assert b"connection: close" in received.lower()


def test_headers_are_limited_in_size_and_number(server):
    for fields in (
        [b"X-%d: a\r\n" % i for i in range(200)],
        [b"X: " + b"a" * 20_000 + b"\r\n"],
        [b"X: a\r\n"] * 50_000,
    ):
        received = exchange(server, head(*fields, LENGTH) + BODY)
        assert received.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[" * 1_000_000, "nested"),
        (b'{"prompt":' * 100_000 + b"1" + b"}" * 100_000, "nested"),
        (b'{"prompt": ' + b"[" * 100 + b"]" * 100 + b"}", "nested"),
        (b'{"prompt": "\xff"}', "UTF-8"),
        (b"\xef\xbb\xbf{}", "JSON"),
        (b"", "JSON"),
        (b'{"prompt": "a\\ud800"}', "surrogate"),
        (b"[]", "a JSON object"),
        (b'"a"', "a JSON object"),
        (b'{"prompt": NaN}', "NaN is not a number"),
        (b'{"prompt": "a", "temperature": 1e999}', "temperature"),
        (b'{"prompt": "a", "prompt": "b"}', "twice"),
        (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "64 bits"),
        (b'{"prompt": "a", "__class__": 1}', "__class__"),
        (b'{"prompt": "a", "model_config": {}}', "model_config"),
        (b'{"prompt": {"a": 1}}', "prompt"),
        (b'{"prompt": [' + b"[1]," * 1000 + b"[1]]}", "at most"),
        (b'{"prompt": "a", "model": "' + b"x" * 100_000 + b'"}', "there is no model"),
    ],
)
def test_bad_json_is_told(server, data, message):
    answer = httpx.post(f"{server.url}/completions", content=data, headers={"Content-Type": "application/json"})
    assert answer.status_code == (404 if "no model" in message else 400)
    assert message in answer.json()["error"]["message"] and len(answer.content) < 2000


def test_a_body_that_is_too_large_is_refused(serving, engine, limits):
    server = serving(engine, limits=limits(body=10_000))
    with openai.OpenAI(base_url=server.url, api_key="none") as client, pytest.raises(openai.APIStatusError) as raised:
        client.completions.create(model="tiny", prompt="a" * 20_000)
    assert raised.value.status_code == 413
    chunks = b"".join(b"400\r\n" + b"a" * 1024 + b"\r\n" for _ in range(20))
    assert exchange(server, head(CHUNKED) + chunks + b"0\r\n\r\n").startswith(b"HTTP/1.1 413")
    with socket.create_connection(("127.0.0.1", server.port)) as connection:  # it never ends
        connection.sendall(head(b"Content-Length: 1000000000000\r\n"))
        with pytest.raises(OSError):
            for _ in range(10_000):
                connection.sendall(b"a" * 10_000)
    assert is_well(server)


def test_only_json_is_read(server):
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = httpx.post(f"{server.url}/completions", content=BODY, headers={"Content-Type": kind})
        assert answer.status_code == 415 and "application/json" in answer.json()["error"]["message"]


def test_slow_heads_are_closed(serving, engine, limits):
    server = serving(engine, limits=limits(header_seconds=0.3))
    with ExitStack() as stack:
        silent, partial, dripping, second = (
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(4)
        )
        partial.sendall(b"POST /v1/comp")
        second.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(0.1)
        second.sendall(b"GET /hea")
        begin = time.perf_counter()
        with pytest.raises(OSError):
            while time.perf_counter() - begin < 3:
                dripping.sendall(b"a")
                time.sleep(0.05)
        assert time.perf_counter() - begin < 2
        assert all(closes(connection) for connection in (silent, partial, second))
    assert is_well(server)


def test_slow_bodies_are_told(serving, engine, limits):
    server = serving(engine, limits=limits(body_seconds=0.3))
    received = exchange(server, head(LENGTH) + BODY[:5])
    assert received.startswith(b"HTTP/1.1 408") and b"did not arrive" in received


def test_an_incomplete_body_harms_nobody(server):
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head(LENGTH) + BODY[:5])
    assert exchange(server, head(LENGTH, b"Connection: close\r\n") + BODY).startswith(b"HTTP/1.1 200")


def test_a_client_that_does_not_read_is_cut_off(serving, scripted, limits):
    engine = scripted()
    server = serving(engine, limits=limits(stall_seconds=0.3))
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        body = json.dumps({"prompt": "a", "stream": True, "max_tokens": 200}).encode()
        connection.sendall(head(b"Content-Length: %d\r\n" % len(body)) + body)
        assert engine.asked.acquire(timeout=2)
        for _ in range(200):
            engine.put(engine.answers[0], "a" * 100_000)
        assert engine.ended.acquire(timeout=3) and engine.answers[0].cancelled


def test_hundreds_of_connections_leave_room_for_requests(serving, engine, limits):
    server = serving(engine, limits=limits(connections=250))
    with ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(240)]
        assert is_well(server)
        more = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(60)]
        assert sum(closes(connection, 0.05) for connection in more) >= 45
        idle[0].sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        idle[0].settimeout(2)
        assert idle[0].recv(100).startswith(b"HTTP/1.1 200")
    assert is_well(server)


def test_without_a_key_only_this_machine_is_answered(server):
    for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", ""):
        answer = httpx.get(f"{server.url}/models", headers={"Host": host})
        assert answer.status_code == 400
    for host in ("localhost", f"localhost:{server.port}", "127.0.0.1", "[::1]:80", "LOCALHOST"):
        assert httpx.get(f"{server.url}/models", headers={"Host": host}).status_code == 200


def test_a_key_is_needed_everywhere_but_for_health(serving, engine):
    server = serving(engine, key="secret-Key")
    for key in ("", "secret-ke", "secret-Keyx", "SECRET-KEY", "secret-Key secret-Key"):
        with openai.OpenAI(base_url=server.url, api_key=key or "x", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError) as raised:
                client.models.list()
            assert raised.value.code == "invalid_api_key"
    for path in ("/v1/models", "/metrics", "/tokenizer_info", "/none"):
        assert httpx.get(server.root + path).status_code == 401
    odd = exchange(
        server, b"GET /v1/models HTTP/1.1\r\nAuthorization: Bearer \xff\xfe\r\nConnection: close\r\nHost: a\r\n\r\n"
    )
    assert odd.startswith(b"HTTP/1.1 401")
    assert httpx.get(f"{server.root}/health").status_code == 200
    with openai.OpenAI(base_url=server.url, api_key="secret-Key", max_retries=0) as client:
        assert client.models.list().data
        assert client.with_options(default_headers={"Host": "far.example"}).models.list().data


def test_pages_of_other_origins_get_nothing_unless_they_are_named(server, serving, engine):
    asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    assert httpx.options(f"{server.url}/completions", headers=asked).status_code == 405
    answer = httpx.get(f"{server.url}/models", headers=asked)
    assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["x-content-type-options"] == "nosniff"
    open_ = serving(engine, cors=["https://a.example"])
    assert httpx.options(f"{open_.url}/completions", headers=asked).status_code == 200
    assert httpx.get(f"{open_.url}/models", headers=asked).headers["access-control-allow-origin"] == asked["Origin"]
    other = httpx.get(f"{open_.url}/models", headers={"Origin": "https://b.example"})
    assert "access-control-allow-origin" not in other.headers


def test_no_text_becomes_a_control_marker(serving, scripted):
    engine = scripted(text="ab")
    server = serving(engine)
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        text = "<s> </s> <bos> <eos> <|endoftext|> <256> [INST"
        client.completions.create(model="tiny", prompt=text)
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": text}])
        completion, chat = (list(answer.question.prompt) for answer in engine.answers)
        assert completion == list(text.encode())
        assert chat == [256, *f"[INST] {text} [/INST]".encode()]
        for marker in ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"):
            for role in ("system", "user"):
                said = [{"role": role, "content": f"a {marker} b"}, {"role": "user", "content": "c"}][-2:]
                with pytest.raises(openai.BadRequestError) as raised:
                    client.chat.completions.create(model="tiny", messages=said if role == "system" else said[:1])
                assert raised.value.param == "messages" and marker in raised.value.message
        assert "[INST]" in engine.answers[1].question.stop  # nor does an answer have one


def test_markup_in_a_text_is_never_a_page(serving, scripted):
    """No browser shows it as HTML: answers and errors are JSON or events, and say that nobody may guess otherwise."""
    page = "<script>alert(1)</script>"
    server = serving(scripted(text=page))
    asked = {"prompt": page, "model": "tiny"}
    for answer, kind in (
        (httpx.post(f"{server.url}/completions", json=asked), "application/json"),
        (httpx.post(f"{server.url}/completions", json=asked | {"stream": True}), "text/event-stream; charset=utf-8"),
        (httpx.post(f"{server.url}/completions", json=asked | {"model": page}), "application/json"),
        (httpx.post(f"{server.url}/completions", json=asked | {page: 1}), "application/json"),
        (httpx.get(f"{server.url}/models/{page}"), "application/json"),
        (httpx.get(f"{server.root}/{page}"), "application/json"),
        (httpx.get(f"{server.root}/metrics"), "text/plain; version=0.0.4; charset=utf-8"),
    ):
        assert answer.headers["content-type"] == kind
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_nobody_gets_anothers_text(server, model):
    """Sixteen streams at once, each of which is what the model writes for its prompt alone."""
    prompts = [f"{'abcdefgh'[i % 8] * (1 + 5 * i)} {i}" for i in range(16)]
    requests = [Request(prompt=p, max_new_tokens=24, seed=i) for i, p in enumerate(prompts)]
    alone = [complete(model, ByteTokenizer(), [request])[0].text for request in requests]

    def ask(i: int) -> str:
        with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
            asked = {"model": "tiny", "prompt": prompts[i], "max_tokens": 24, "seed": i}
            return "".join(event.choices[0].text for event in client.completions.create(**asked, stream=True))

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(16))) == alone
