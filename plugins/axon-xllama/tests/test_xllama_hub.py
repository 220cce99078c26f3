"""Checkpoints from the hub, played by a small server on loopback that speaks its API."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from axon_core import CheckpointError
from axon_core.cli import main
from axon_xllama import XLlama
from axon_xllama.checkpoints.hub import download, is_hub_name

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves a folder as `lab/model`; `gated/model` asks for an agreement; nothing else exists."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder, self.asked, self.cut = folder, list[str](), set[str]()


class Answer(BaseHTTPRequestHandler):
    """One request."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(f"{self.command} {path}")
        if "lab/model" not in path:
            code = "GatedRepo" if "gated/model" in path else "RepoNotFound"
            return self.reply(403 if code == "GatedRepo" else 404, b"{}", {"X-Error-Code": code}, body)
        files = {file.name: file.read_bytes() for file in self.server.folder.iterdir()}
        if path.startswith("/api/models/lab/model"):
            if "/tree/" in path:
                tree = [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in files.items()
                ]
                return self.reply(200, json.dumps(tree).encode(), {}, body)
            if path.endswith("/gone"):
                return self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
            siblings = [{"rfilename": name} for name in files]
            found = {"id": "lab/model", "modelId": "lab/model", "sha": COMMIT, "siblings": siblings}
            return self.reply(200, json.dumps(found).encode(), {}, body)
        name = path.rpartition("/")[2]
        data = files[name]
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        begin = int(self.headers["Range"].removeprefix("bytes=").partition("-")[0]) if "Range" in self.headers else 0
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        self.reply(206 if begin else 200, data[begin:], headers, body, cut=body and name in self.server.cut)

    def reply(self, status: int, data: bytes, headers: dict[str, str], body: bool, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.close_connection = True


@pytest.fixture
def hub(tmp_path, llama, hf_folder, monkeypatch):
    folder = hf_folder(llama())
    (folder / "pytorch_model.bin").write_bytes(b"never taken")
    with Hub(folder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        yield server
        server.shutdown()


def test_a_name_on_the_hub_is_imported(hub, tmp_path, capsys):
    assert main(["import", "lab/model", "--out", str(tmp_path / "ours")]) == 0
    assert "parameters" in capsys.readouterr().out
    assert XLlama.load(tmp_path / "ours").config.dim == 64
    assert not any(".bin" in asked for asked in hub.asked)
    first = len(hub.asked)
    assert main(["import", "lab/model", "--revision", COMMIT, "--out", str(tmp_path / "again")]) == 0
    assert not any("resolve" in asked and asked.startswith("GET") for asked in hub.asked[first:])  # it was here


def test_settings_are_checked_before_the_weights_are_copied(hub):
    values = json.loads((hub.folder / "config.json").read_text())
    (hub.folder / "config.json").write_text(json.dumps({**values, "model_type": "bert"}))
    with pytest.raises(CheckpointError, match=r"model_type must be .*'llama'.* got 'bert'"):
        download("lab/model")
    assert not any("safetensors" in asked and "resolve" in asked for asked in hub.asked)


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("lab/nothing", None, "the hub has no lab/nothing, or not for you"),
        ("gated/model", None, "gated/model must be asked for: agree to its terms"),
        ("lab/model", "gone", "lab/model has no revision 'gone'"),
    ],
)
def test_what_the_hub_does_not_give(hub, name, revision, message):
    with pytest.raises(CheckpointError, match=message):
        download(name, revision)


def test_a_hub_that_is_not_there(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match="lab/model cannot be copied from the hub: "):
        download("lab/model")


def test_a_download_that_was_cut_off_goes_on(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 2)
    hub.cut = {"model.safetensors"}
    with pytest.raises(CheckpointError, match="the same command goes on where it ended"):
        download("lab/model")
    hub.cut = set()
    folder = download("lab/model")
    assert (folder / "model.safetensors").read_bytes() == (hub.folder / "model.safetensors").read_bytes()


def test_which_texts_name_a_checkpoint_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").mkdir()
    names = {
        "a/b": False,
        "a/c": True,
        "org/name-1.5_x": True,
        "name": False,
        "../x": False,
        "a/b/c": False,
        "/x/y": False,
    }
    assert {name: is_hub_name(name) for name in names} == names
