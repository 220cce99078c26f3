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


def weights(hub: Hub) -> set[str]:
    """The files of weights that were copied."""
    asked = {request.rpartition("/")[2] for request in hub.asked if request.startswith("GET /lab/model/resolve")}
    return {name for name in asked if name.endswith((".safetensors", ".bin", ".gguf", ".pth"))}


def edit_config(hub: Hub, **changes) -> None:
    values = json.loads((hub.folder / "config.json").read_text()) | changes
    (hub.folder / "config.json").write_text(
        json.dumps({name: value for name, value in values.items() if value is not ...})
    )


def test_settings_are_checked_before_the_weights_are_copied(hub):
    edit_config(hub, model_type="bert")
    with pytest.raises(CheckpointError, match=r"model_type must be .*'llama'.* got 'bert'"):
        download("lab/model")
    assert not weights(hub)


def test_the_tokenizer_is_checked_before_the_weights_are_copied(hub, words, more_words, tmp_path, capsys):
    command = ["import", "lab/model", "--out", str(tmp_path / "ours")]
    (hub.folder / "tokenizer.model").write_bytes(more_words.read_bytes())
    assert main(command) == 1
    assert "it has 400 and the tokenizer 450; give the right tokenizer with --tokenizer" in capsys.readouterr().err
    assert not weights(hub)
    assert main([*command, "--tokenizer", str(words)]) == 0
    assert weights(hub) == {"model.safetensors"}


def test_the_chat_template_is_read_before_the_weights_are_copied(hub):
    (hub.folder / "tokenizer_config.json").write_text('{"chat_template"')
    with pytest.raises(CheckpointError, match=r"tokenizer_config.json cannot be read"):
        download("lab/model")
    assert not weights(hub)


def test_a_place_that_is_taken_is_refused_before_the_hub_is_asked(hub, tmp_path, capsys):
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "precious").touch()
    assert main(["import", "lab/model", "--out", str(tmp_path / "ours")]) == 2
    assert "is not empty, and nothing is overwritten" in capsys.readouterr().err
    assert not hub.asked


def test_only_the_weights_of_the_model_are_copied(hub, llama, hf_folder):
    for name in ("consolidated.safetensors", "model-00001-of-00001.safetensors"):  # as beside Mistral's
        (hub.folder / name).write_bytes((hub.folder / "model.safetensors").read_bytes())
    download("lab/model")
    assert weights(hub) == {"model.safetensors"}


def test_the_weights_that_an_index_names_are_copied(hub, llama, hf_folder):
    hub.folder = hf_folder(llama(), "parts", max_shard_size="60KB")
    shards = {file.name for file in hub.folder.glob("model-*.safetensors")}
    (hub.folder / "consolidated.safetensors").write_bytes(b"never taken")
    folder = download("lab/model")
    assert len(shards) > 1 and weights(hub) == shards == {file.name for file in folder.glob("*.safetensors")}


def test_an_index_cannot_ask_for_more_than_it_names(hub, llama, hf_folder):
    hub.folder = hf_folder(llama(), "parts", max_shard_size="60KB")
    index = hub.folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "*"}}))
    download("lab/model")
    assert not weights(hub)


def test_a_config_without_a_context_gets_the_given_one(hub, tmp_path, capsys):
    edit_config(hub, max_position_embeddings=...)
    command = ["import", "lab/model", "--out", str(tmp_path / "ours")]
    assert main(command) == 1
    assert "must contain max_position_embeddings, but does not; --context sets it" in capsys.readouterr().err
    assert not weights(hub)
    assert main([*command, "--context", "64"]) == 0
    assert XLlama.load(tmp_path / "ours").config.context == 64


def test_a_repository_of_gguf_files(hub):
    for file in hub.folder.iterdir():
        file.unlink()
    for name in ("a", "b", "c", "d", "e"):
        (hub.folder / f"{name}.gguf").write_bytes(b"never taken")
    with pytest.raises(
        CheckpointError,
        match=r"^lab/model holds GGUF files \(a.gguf, b.gguf, c.gguf, d.gguf and 1 more\); copy one with `hf download "
        r"lab/model a.gguf --local-dir .`, and import that file: `axon import a.gguf --out FOLDER`$",
    ):
        download("lab/model")
    (hub.folder / "config.json").write_text('{"model_type": "llama"}')  # as some have beside them
    with pytest.raises(CheckpointError, match=r"^lab/model holds GGUF files"):
        download("lab/model")
    assert not weights(hub)


def test_a_repository_without_weights_or_config(hub):
    (hub.folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"^lab/model has no weights: neither .*; convert its pytorch_model.bin"):
        download("lab/model")
    (hub.folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"^lab/model is not a checkpoint of .* it has no config.json$"):
        download("lab/model")


def test_what_is_checked_is_what_is_copied(hub):
    download("lab/model", check=lambda folder: hub.asked.clear())
    assert weights(hub) and all(COMMIT in asked for asked in hub.asked), hub.asked


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["models/llama.gguf"], "there is neither a file nor a folder models/llama.gguf here"),
        (["models/llama.bin", "--revision", "main"], "--revision is for ORGANISATION/NAME on the hub, but PATH is"),
        ([".", "--revision", "main"], "--revision is for ORGANISATION/NAME on the hub, but PATH is .; leave it out"),
    ],
)
def test_a_path_is_not_looked_up_on_the_hub(hub, tmp_path, capsys, arguments, message):
    assert main(["import", *arguments, "--out", str(tmp_path / "ours")]) == (2 if "--revision" in arguments else 1)
    assert message in capsys.readouterr().err
    assert not hub.asked


def test_an_error_without_a_text(hub, monkeypatch):
    def reset(*_: object, **__: object) -> None:
        raise ConnectionResetError

    monkeypatch.setattr("huggingface_hub.HfApi.snapshot_download", reset)
    with pytest.raises(CheckpointError, match=r"^lab/model cannot be copied from the hub: ConnectionResetError; the"):
        download("lab/model")


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("lab/nothing", None, "there is no folder lab/nothing here, and the hub has no lab/nothing, or not for you"),
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
        "models/llama.gguf": False,
        "models/llama.bin": False,
        "models/model.safetensors": False,
        "models/consolidated.00.pth": False,
    }
    assert {name: is_hub_name(name) for name in names} == names
