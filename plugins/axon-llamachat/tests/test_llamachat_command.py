"""`axon serve`: what it says, refuses and serves, with `curl` as the client, and how it ends."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import threading

import httpx
import openai
import pytest

from axon_core import ByteTokenizer
from axon_core.cli import main
from axon_core.text import JinjaTemplate
from axon_core.training import Recipe, build_trainer, fit
from axon_llamachat import serve_cli, templates
from axon_llamachat.server import check_exposure
from axon_llamachat.templates import choose_template


def test_it_says_what_it_serves_and_curl_reads_a_stream(command, folder):
    served = command(str(folder), "--memory", "4MB", "--rows", "4")
    text = "".join(served.lines)
    assert re.search(r"little: 256 tokens of context, [\d,]{7,} bytes for keys and values, chat template llama2", text)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", served.root)
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5, "stream": True})
    asked = ["-sS", "-N", f"{served.root}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", body]
    events = subprocess.run(["curl", *asked], capture_output=True, text=True, timeout=10).stdout.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""] and '"role":"assistant"' in events[0]
    code, output = served.stop()
    assert code == 0 and "Stopping" in output


def test_requests_sample_as_the_model_was_published(command, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "greedy")
    (tmp_path / "greedy" / "generation_config.json").write_text('{"do_sample": false, "repetition_penalty": 1.2}')
    served = command(str(folder), str(tmp_path / "greedy"), "--memory", "4MB")
    told = [line for line in served.lines if "published" in line]
    assert told == ["greedy: published with repetition_penalty 1.2, temperature 0.0, for requests that do not say\n"]
    asked = {"prompt": "a", "max_tokens": 20}

    def texts(**more: object) -> set[str]:
        found = (httpx.post(f"{served.root}/v1/completions", json=asked | more).json() for _ in range(3))
        return {answer["choices"][0]["text"] for answer in found}

    penalty = {"repetition_penalty": 1.2}
    assert texts(model="greedy") == texts(model="little", temperature=0, **penalty)  # one text, whatever the seeds
    assert len(texts(model="little")) > 1 and len(texts(model="greedy", temperature=1)) > 1
    assert served.stop()[0] == 0


def test_several_models_have_the_names_of_their_folders(command, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "other")
    served = command(str(folder), str(tmp_path / "other"), "--memory", "4MB")
    with openai.OpenAI(base_url=f"{served.root}/v1", api_key="none", max_retries=0) as client:
        assert [found.id for found in client.models.list().data] == ["little", "other"]
        texts = {client.completions.create(model=m, prompt="a", seed=1).choices[0].text for m in ("little", "other")}
        assert len(texts) == 1
        with pytest.raises(openai.BadRequestError, match="model must be one of little, other"):
            client.completions.create(model=None, prompt="a")
    assert served.stop(signal.SIGINT)[0] == 0


def test_every_model_has_a_page_beside_the_api(command, folder, tmp_path):
    data = {"train": {"reverse": 40}, "valid": {"reverse": 4}, "tokenizer": "byte"}
    sizes = {"type": "transformer", "dim": 16, "n_heads": 2, "encoder_layers": 1, "decoder_layers": 1}
    trainer = {"type": "translation", "steps": 1, "batch_size": 64}
    fit(build_trainer(Recipe.of({"model": sizes, "data": data, "trainer": trainer}, "a", "a test")), tmp_path / "de-en")
    served = command(str(folder), str(tmp_path / "de-en"), "--memory", "4MB", "--page")
    text = "".join(served.lines)
    assert "de-en: a page for a model of the type transformer" in text and f"in the browser at {served.root}" in text
    listed = httpx.get(served.root).text
    assert 'href="page/little/"' in listed and 'href="page/de-en/"' in listed
    for name, words in (("little", "Text to continue"), ("de-en", "Length penalty")):
        assert words in httpx.get(f"{served.root}/page/{name}/").text
    assert [model["id"] for model in httpx.get(f"{served.root}/v1/models").json()["data"]] == ["little"]
    assert served.stop()[0] == 0


def test_a_page_needs_gradio(folder, monkeypatch, capsys):
    monkeypatch.setattr(serve_cli, "find_spec", lambda name: None)
    assert main(["serve", str(folder), "--page"]) == 2
    assert "a page needs gradio: pip install 'axon-llamachat[page]'" in capsys.readouterr().err


@pytest.mark.parametrize(("grace", "code"), [("10", 0), ("0.2", 1)])
def test_a_signal_lets_running_streams_finish_within_the_grace(command, folder, grace, code):
    served = command(str(folder), "--memory", "4MB", "--grace", grace)
    asked = {"prompt": "a", "max_tokens": 250, "n": 16, "stream": True, "seed": 1}
    with httpx.stream("POST", f"{served.root}/v1/completions", json=asked, timeout=20) as response:
        pieces = response.iter_text()
        text = next(pieces)
        served.process.send_signal(signal.SIGTERM)
        text += "".join(pieces)
    if code == 0:
        assert text.endswith("data: [DONE]\n\n") and text.count('"finish_reason":"') == 16
    else:
        assert "data: [DONE]" not in text and "the server is stopping" in text
    ended, output = served.end()
    assert ended == code, output


def test_a_second_signal_ends_at_once(command, folder):
    served = command(str(folder), "--memory", "4MB")
    asked = {"prompt": "a", "max_tokens": 250, "n": 16, "stream": True}
    with httpx.stream("POST", f"{served.root}/v1/completions", json=asked, timeout=20) as response:
        pieces = response.iter_text()
        next(pieces)
        served.process.send_signal(signal.SIGINT)
        threading.Timer(0.1, served.process.send_signal, [signal.SIGINT]).start()
        assert "the server is stopping" in "".join(pieces)
    assert served.end()[0] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "can be reached from other machines"),
        (["--host", "::"], "can be reached from other machines"),
        (["--host", "192.168.1.1"], "can be reached from other machines"),
        (["--api-key", "a b"], "printable ASCII"),
        (["--api-key", ""], "printable ASCII"),
        (["--memory", "much"], "a number of bytes"),
        (["--host", "127.0.0.1", "--port", "70000"], "70000"),
        (["--template", "other"], "no chat template 'other' is installed"),
    ],
)
def test_wrong_usage_is_told_before_weights_are_read(folder, capsys, arguments, message):
    assert main(["serve", str(folder), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_port_in_use_is_told(folder, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert main(["serve", str(folder), "--port", str(other.getsockname()[1])]) == 2
    assert "choose another with --port" in capsys.readouterr().err


def test_two_folders_of_one_name_are_told(folder, tmp_path, capsys):
    assert main(["serve", str(folder), str(tmp_path / "little")]) == 2
    assert "different names" in capsys.readouterr().err


def test_a_key_or_this_machine():
    for host in ("127.0.0.1", "localhost", "::1", "127.8.9.1"):
        check_exposure(host, None)
    check_exposure("0.0.0.0", "key")


def test_the_template_is_the_runs_own(tmp_path, folder):
    from axon_core.training import RunFolder

    tokenizer = ByteTokenizer()
    assert choose_template(folder, tokenizer, None)[0] == "llama2"
    assert choose_template(folder, tokenizer, "plain")[0] == "plain"
    recipe = {"name": "a", "data": {"template": "plain"}}
    with RunFolder.created(tmp_path / "run", {"recipe": recipe}):
        pass
    assert choose_template(tmp_path / "run", tokenizer, None)[0] == "plain"
    tokenizer.eos = None
    assert choose_template(folder, tokenizer, None) is None


def test_a_published_template_that_cannot_be_used_is_told(folder, monkeypatch):
    notes = []
    for source, name in (("{{ messages[0].content }}", "published"), ("{% for", None)):
        monkeypatch.setattr(templates, "published_template", lambda tokenizer, source=source: JinjaTemplate(source, {}))
        chosen = choose_template(folder, ByteTokenizer(), None, notes.append)
        assert (chosen and chosen.name) == name
    (note,) = notes
    assert note.startswith("the chat template cannot be used: ") and "use `axon generate` instead" in note
