"""The gate to the pages: what of gradio is offered, to whom, and that nothing asks another host."""

from __future__ import annotations

import base64
import socket
import subprocess
import sys
from typing import Any, Self

import gradio
import httpx
import pytest

from axon_core import UsageError
from axon_llamachat import PAGES, Page, make_app, picture

CLOSED = (
    *("/config/x", "/login", "/logout", "/user", "/monitoring", "/robots.txt", "/manifest.json", "/pwa_icon"),
    *("/gradio_api/info", "/gradio_api/openapi.json", "/gradio_api/runs", "/gradio_api/app_id", "/gradio_api/token"),
    *("/gradio_api/file=/etc/passwd", "/gradio_api/file/etc/passwd", "/file=/etc/passwd", "/gradio_api/user"),
    *("/gradio_api/proxy=https://a.hf.space/x", "/gradio_api/upload_progress?upload_id=a", "/gradio_api/queue/status"),
    *("/gradio_api/call/_settle/a", "/gradio_api/custom_component/a/client/component/index.js", "/svelte/x.js"),
    *("/gradio_api/run-history/buckets", "/gradio_api/vibe-code", "/gradio_api/dev/reload", "/gradio_api/deep_link"),
)
POSTED = (
    *("/gradio_api/upload", "/login", "/gradio_api/component_server", "/gradio_api/run/predict", "/gradio_api/api/x"),
    *("/gradio_api/call/_settle", "/gradio_api/call/v2/_settle", "/gradio_api/stream/a", "/gradio_api/vibe-edit"),
    *("/gradio_api/process_recording", "/gradio_api/run-history/connect", "/", "/gradio_api/stream/a/close"),
)


class Named(Page):
    """A page that shows a text and a picture."""

    def __init__(self, name: str) -> None:
        self.name = name

    @classmethod
    def load(cls, folder: Any, *, name: str, device: str) -> Self:
        return cls(name)

    def blocks(self) -> gradio.Blocks:
        with gradio.Blocks(title=self.name) as made:
            gradio.Textbox(f"a page called {self.name}")
            gradio.HTML(picture(b"GIF89a", "<six>", "gif"))
        return made


@pytest.fixture(scope="module")
def paged(serving_long, as_served, engine):
    return serving_long(as_served(engine), pages={"other & <more>": Named("other")})


@pytest.fixture(scope="module")
def root(paged) -> str:
    return f"{paged.root}/page/tiny"


def test_the_pages_are_listed_and_one_alone_is_led_to(paged, serving, engine):
    text = httpx.get(paged.root).text
    assert 'href="page/tiny/"' in text and 'href="page/other%20%26%20%3Cmore%3E/">other &amp; &lt;more&gt;</a>' in text
    other = httpx.get(f"{paged.root}/page/other%20%26%20%3Cmore%3E/")
    assert other.status_code == 200 and "a page called other" in other.text
    alone = serving(engine, pages={})
    assert httpx.get(alone.root).headers["location"] == "page/tiny/"
    assert httpx.get(f"{alone.root}/page/tiny", follow_redirects=True).url.path == "/page/tiny/"
    assert httpx.get(f"{alone.root}/page/none/").status_code == 404


def test_without_pages_there_are_none(server):
    for path in ("/", "/page/", "/page/tiny/"):
        assert httpx.get(server.root + path).status_code == 404


def test_a_page_and_a_model_of_one_name_are_told(engine, as_served):
    with pytest.raises(UsageError, match="tiny twice"):
        make_app([as_served(engine)], pages={"tiny": Named("tiny")})


@pytest.mark.parametrize("path", CLOSED)
def test_what_the_page_does_not_need_is_not_there(root, path):
    assert httpx.get(root + path).status_code == 404
    assert httpx.head(root + path).status_code == 404


@pytest.mark.parametrize("path", POSTED)
def test_nothing_else_takes_bodies(root, path):
    assert httpx.post(root + path, json={"data": []}).status_code == 404
    assert httpx.post(root + path, files={"files": b"a"}).status_code == 404


@pytest.mark.parametrize("path", ["../../../../etc/passwd", "..%2f..%2f..%2fetc/passwd", "%2e%2e/%2e%2e/routes.py"])
@pytest.mark.parametrize("folder", ["assets", "static"])
def test_no_other_file_is_read(paged, folder, path):
    with socket.create_connection(("127.0.0.1", paged.port), timeout=5) as connection:
        connection.sendall(
            f"GET /page/tiny/{folder}/{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        )
        received = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert received.split()[1] in (b"403", b"404") and b"root:" not in received and b"import" not in received


def test_bodies_are_limited_json_of_the_page_itself(serving, engine, limits):
    url = f"{serving(engine, pages={}, limits=limits(body=10_000)).root}/page/tiny/gradio_api/queue/join"
    body = {"data": [], "fn_index": 0, "session_hash": "a"}
    assert httpx.post(url, json={**body, "data": ["a" * 20_000]}).status_code == 413
    assert httpx.post(url, content=b"[" * 5000, headers={"Content-Type": "application/json"}).status_code == 400
    assert httpx.post(url, content=b"\xff", headers={"Content-Type": "application/json"}).status_code == 400
    assert httpx.post(url, content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    for site in ("cross-site", "same-site"):
        assert httpx.post(url, json=body, headers={"Sec-Fetch-Site": site}).status_code == 403
    assert httpx.post(url, json={"data": []}).status_code in (400, 422)


def test_files_of_the_server_are_not_values(root):
    """Gradio takes what says that it is a file of the server for one."""
    file = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    for fn_index in range(12):
        body = {"data": [file] * 10, "fn_index": fn_index, "session_hash": f"files{fn_index}"}
        joined = httpx.post(f"{root}/gradio_api/queue/join", json=body)
        if joined.status_code == 200:
            events = httpx.get(
                f"{root}/gradio_api/queue/data", params={"session_hash": body["session_hash"]}, timeout=20
            )
            assert "root:" not in events.text


def test_browsers_are_told_what_a_page_may_do(paged, root):
    for url in (paged.root, root + "/", root + "/theme.css"):
        answer = httpx.get(url, headers={"Origin": "https://a.example"}, follow_redirects=True)
        assert answer.status_code == 200 and not any(name.startswith("access-control") for name in answer.headers)
        policy = dict(each.split(" ", 1) for each in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
        assert policy["connect-src"] == policy["font-src"] == "'self'"
        assert answer.headers["x-content-type-options"] == "nosniff"
    asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    assert httpx.options(f"{root}/gradio_api/queue/join", headers=asked).status_code == 404


def test_the_key_guards_the_page(serving, engine):
    server = serving(engine, pages={}, key="secret-Key")

    def status(path: str, scheme: str, value: str) -> int:
        return httpx.get(server.root + path, headers={"Authorization": f"{scheme} {value}"}).status_code

    right, wrong = (base64.b64encode(f"anybody:{key}".encode()).decode() for key in ("secret-Key", "secret-key"))
    for path in ("/", "/page/tiny/", "/page/tiny/theme.css", "/page/tiny/gradio_api/startup-events"):
        answer = httpx.get(server.root + path)
        assert answer.status_code == 401 and answer.headers["www-authenticate"].startswith("Basic ")
        assert "password" in answer.json()["error"]["message"]
        assert status(path, "Basic", wrong) == status(path, "Basic", "!") == status(path, "Basic", "Og==") == 401
        assert status(path, "Basic", right) == status(path, "Bearer", "secret-Key") == (200 if path != "/" else 307)
    assert status("/page/tiny/", "Basic", right) == 200
    assert status("/v1/models", "Basic", right) == 401  # a page of another site could have a browser send it
    assert status("/v1/models", "Bearer", "secret-Key") == 200


def test_the_server_asks_no_other_host(serving, engine, monkeypatch):
    asked: list[Any] = []
    connect, resolve = socket.socket.connect, socket.getaddrinfo

    def noted(self: socket.socket, address: Any) -> None:
        asked.append(address[0])
        connect(self, address)

    def resolved(host: Any, *values: Any, **named: Any) -> Any:
        asked.append(host)
        return resolve(host, *values, **named)

    monkeypatch.setattr(socket.socket, "connect", noted)
    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    root = f"{serving(engine, pages={}).root}/page/tiny"
    for path in ("/", "/config", "/theme.css", "/gradio_api/startup-events"):
        text = httpx.get(root + path).text
        assert "googleapis" not in text and "cdnjs" not in text
    assert asked and {*asked} == {"127.0.0.1"}


def test_gradio_is_not_imported_without_a_page():
    code = "import axon_llamachat, axon_llamachat.serve_cli, sys; sys.exit('gradio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_plugins_offer_pages_for_their_models():
    assert {"transformer", "unet"} <= {*PAGES}
    assert PAGES.entry("transformer").distribution == "axon-transformer"
