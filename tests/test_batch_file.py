"""A file of prompts in, JSON lines out: complete, in parts, after a kill, and every way the files can be wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from axon_core import MODELS
from axon_core.cli import main
from axon_core.generation.api import Request, complete
from axon_core.generation.batch_file import plan
from axon_core.generation.sampling import Sampling
from axon_core.interfaces.model import CausalLM
from axon_core.text.tokenizer import ByteTokenizer

PROMPTS = ["The quick", "a", "é!", "and a longer line of text", "xy", "The quick brown", "last"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("model"), seed=0)


def save(folder: Path, seed: int) -> str:
    torch.manual_seed(seed)
    build = MODELS["xllama"].build
    build(vocab_size=258, context=32, dim=32, n_layers=2, n_heads=4).save(folder)
    ByteTokenizer().save(folder)
    return str(folder)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("in.txt").write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    return "in.txt"


def bulk(model: str, source: str, *arguments: str, target: str = "out.jsonl") -> int:
    return main(["generate", model, "--input", source, "--output", target, "--max-new-tokens", "12", *arguments])


def rows(target: str = "out.jsonl") -> list[dict]:
    return [json.loads(line) for line in Path(target).read_bytes().splitlines()]


def by_id(target: str = "out.jsonl") -> dict:
    found = rows(target)
    assert len({row["id"] for row in found}) == len(found)
    return {row["id"]: row for row in found}


def test_every_prompt_gets_what_it_gets_alone(saved: str, source: str, capsys):
    assert bulk(saved, source, "--batch-size", "3", "--stop", "e", "--seed", "5", "--logprobs") == 0
    got = by_id()
    model = CausalLM.load(saved)
    for i, prompt in enumerate(PROMPTS):
        request = Request(prompt=prompt, max_new_tokens=12, sampling=Sampling(temperature=0.8), stop=("e",), seed=5 + i)
        (alone,) = complete(model, ByteTokenizer(), [request])
        logprobs = got[i + 1].pop("logprobs")
        assert re.fullmatch("[0-9a-f]{16}", got[i + 1].pop("origin"))
        assert got[i + 1] == {
            "id": i + 1,
            "prompt": prompt,
            "text": alone.text,
            "finish": alone.finish,
            "tokens": alone.tokens,
        }
        assert logprobs == pytest.approx(alone.logprobs, abs=1e-4)
    error = capsys.readouterr().err
    assert (
        "prompt 7/7" in error and "tokens/s  ETA 0:00:00" in error and "7 prompts in out.jsonl, 7 of them new" in error
    )


def test_a_file_of_json_has_ids_of_its_own(saved: str, source: str):
    lines = [{"id": "first", "prompt": "two\nlines"}, {"prompt": "b"}, {"id": 9, "prompt": "c"}]
    Path("in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert bulk(saved, "in.jsonl") == 0
    assert {key: row["prompt"] for key, row in by_id().items()} == {"first": "two\nlines", 2: "b", 9: "c"}


@pytest.mark.parametrize("kept", [0, 1, 3, 7])
@pytest.mark.parametrize("tail", [0, 1, 4, 40], ids="tail={}".format)
def test_what_a_kill_left_is_completed(saved: str, source: str, kept: int, tail: int):
    bulk(saved, source, target="whole.jsonl")
    lines = Path("whole.jsonl").read_bytes().splitlines(keepends=True)
    # The last line was being written: its beginning is there.
    Path("out.jsonl").write_bytes(b"".join(lines[:kept]) + lines[kept % 7][:tail])
    assert bulk(saved, source, "--batch-size", "2") == 0
    assert by_id() == by_id("whole.jsonl")
    assert Path("out.jsonl").read_bytes().startswith(b"".join(lines[:kept]))


def test_a_finished_file_is_left_alone(saved: str, source: str, capsys, monkeypatch):
    bulk(saved, source)
    monkeypatch.setattr("axon_core.checkpoint.models.load_into", lambda *_: pytest.fail("weights were read"))
    before = Path("out.jsonl").read_bytes()
    assert bulk(saved, source) == 0
    assert Path("out.jsonl").read_bytes() == before
    assert "7 prompts in out.jsonl, 0 of them new" in capsys.readouterr().err


def test_ctrl_c_keeps_what_is_finished_and_the_same_command_goes_on(saved: str, source: str):
    Path("in.txt").write_text("".join(f"prompt number {i}\n" for i in range(500)))
    code = "import sys; from axon_core.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "generate", saved, "--input", source, "--output", "out.jsonl"]
    command += ["--max-new-tokens", "12", "--batch-size", "1"]
    with subprocess.Popen(command, env={**os.environ}, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not (Path("out.jsonl").exists() and Path("out.jsonl").stat().st_size):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    n = len(rows())
    assert 0 < n < 500
    assert (
        f"interrupted: {n} of 500 prompts are done; the same command continues there" in error
        and "Traceback" not in error
    )
    before = Path("out.jsonl").read_bytes()
    assert bulk(saved, source, "--batch-size", "64") == 0
    assert len(by_id()) == 500 and Path("out.jsonl").read_bytes().startswith(before)


def write(*lines: dict) -> None:
    Path("in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_what_a_prompt_with_an_id_brings_does_not_depend_on_its_place(saved: str, source: str):
    named = [{"id": name, "prompt": "The same"} for name in ("a", "b", "c")]
    write(*named)
    assert bulk(saved, "in.jsonl", target="whole.jsonl") == 0
    whole = by_id("whole.jsonl")
    assert len({tuple(row["tokens"]) for row in whole.values()}) == 3  # each has a seed of its own
    write(*named[1:])
    assert bulk(saved, "in.jsonl") == 0
    write({"id": "new", "prompt": "One more"}, *reversed(named))
    assert bulk(saved, "in.jsonl") == 0
    got = by_id()
    assert got.pop("new") and got == whole


OTHER = [
    ["--seed", "1"],
    ["--temperature", "0.7"],
    ["--top-k", "9"],
    ["--top-p", "0.9"],
    ["--min-p", "0.1"],
    ["--repetition-penalty", "2"],
    ["--stop", "e"],
    ["--max-new-tokens", "13"],
    ["--logprobs"],
    ["--dtype", "bf16"],
    ["--quantize", "int8"],
]


@pytest.mark.parametrize("arguments", OTHER, ids=" ".join)
def test_a_file_that_was_begun_otherwise_is_not_gone_on_with(saved: str, source: str, arguments: list[str], capsys):
    bulk(saved, source)
    lines = Path("out.jsonl").read_bytes().splitlines(keepends=True)
    begun = b"".join(lines[:3])
    Path("out.jsonl").write_bytes(begun)
    assert bulk(saved, source, *arguments) == 2
    error = capsys.readouterr().err
    assert "line 1 of out.jsonl was made by another model or with other options" in error
    assert "use the same options, choose another file, or remove this one" in error
    assert Path("out.jsonl").read_bytes() == begun


def test_to_say_what_is_so_anyway_changes_nothing(saved: str, source: str):
    bulk(saved, source)
    whole = Path("out.jsonl").read_bytes()
    Path("out.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:3]))
    assert bulk(saved, source, "--dtype", "fp32", "--temperature", "0.8") == 0
    assert Path("out.jsonl").read_bytes() == whole


def test_a_file_of_another_model_is_not_gone_on_with(saved: str, source: str, tmp_path: Path, capsys):
    bulk(saved, source)
    before = Path("out.jsonl").read_bytes()
    assert bulk(save(tmp_path / "other", seed=1), source) == 2
    assert "line 1 of out.jsonl was made by another model" in capsys.readouterr().err
    assert Path("out.jsonl").read_bytes() == before


WRONG = [
    ("in.txt", b"\n \n\n", "in.txt has no prompts"),
    ("in.txt", b"one\n" + b"x" * 33, "the prompt 2 has 33 tokens, but the model's context is 32"),
    ("in.txt", b"", "in.txt has no prompts"),
    ("in.txt", b"\xff\xfe", "cannot read the prompts in in.txt: it is not UTF-8 text"),
    ("nowhere.txt", None, "cannot read the prompts in nowhere.txt: No such file"),
    (".", None, "cannot read .: it is a folder; give a file of prompts"),
    ("in.jsonl", b'{"prompt": "a"}\n{"prompt', "line 2 of in.jsonl is not JSON"),
    ("in.jsonl", b'{"id": 1}\n', "line 1 of in.jsonl is not a valid prompt: prompt: this field is required"),
    ("in.jsonl", b'"text"\n', "line 1 of in.jsonl must be a JSON object"),
    (
        "in.jsonl",
        b'{"prompt": "a", "seed": 3}\n',
        "line 1 of in.jsonl is not a valid prompt: seed: unknown field 'seed'",
    ),
    (
        "in.jsonl",
        b'{"prompt": "a", "id": 2}\n{"prompt": "b"}\n',
        "line 2 of in.jsonl has the same id 2 as an earlier line",
    ),
    ("in.jsonl", b'{"prompt": "a"}\n{"prompt": ""}\n', "the prompt 2 is empty"),
    ("in.jsonl", b'{"prompt": "\\ud83d"}\n', "the prompt 1: the text has a lone surrogate (U+D83D"),
    ("in.jsonl", b'{"prompt": "a", "id": "\\ud83d"}\n', "line 1 of in.jsonl is not a valid prompt: id"),
    ("in.jsonl", b'{"prompt": "a", "id": true}\n', "line 1 of in.jsonl is not a valid prompt: id"),
]


@pytest.mark.parametrize(("name", "content", "message"), WRONG, ids=[case[2] for case in WRONG])
def test_prompts_that_cannot_be_used(saved: str, source: str, name: str, content, message: str, capsys):
    if content is not None:
        Path(name).write_bytes(content)
    assert bulk(saved, name) in (1, 2)
    error = capsys.readouterr().err
    assert message in error and "bug in Axon" not in error
    assert not Path("out.jsonl").exists()


FOREIGN = [
    (b"A letter\nto someone\n", "line 1 of out.jsonl is not a row of results; choose another file"),
    (b"A letter without a last newline", "out.jsonl does not end with a row of results"),
    (b'{"id": 1, "prompt": "a", "text": "", "finish": "eos", "tokens": [], "origin": ""}\n', "of a prompt 1 that is"),
    (b'[1, 2]\n{"id": 1', "line 1 of out.jsonl is not a row of results"),
    (
        b'{"id": [1], "prompt": "a", "text": "", "finish": "length", "tokens": [], "origin": ""}\n',
        "line 1 of out.jsonl",
    ),
    (
        b'{"id": 1, "prompt": "The quick", "text": "", "finish": "eos", "tokens": []}\n',
        "line 1 of out.jsonl is not a row",
    ),
    (b'{"id": 1, "prompt": "one"}\n', "line 1 of out.jsonl is not a row of results"),
    (b'{"id": 1, "prompt": "one"}', "out.jsonl does not end with a row of results"),
    (b'{"id": ' + b"[" * 3000 + b"\n", "line 1 of out.jsonl is not a row of results"),
    (b'{"id": ' + b"[" * 3000, "out.jsonl does not end with a row of results"),
    (b'{"id": ' + b"[" * 100 + b"]" * 100 + b"}", "out.jsonl does not end with a row of results"),
]


@pytest.mark.parametrize(("content", "message"), FOREIGN, ids=[case[1] for case in FOREIGN])
def test_a_file_of_something_else_is_not_touched(saved: str, source: str, content: bytes, message: str, capsys):
    Path("out.jsonl").write_bytes(content)
    assert bulk(saved, source) in (1, 2)
    assert message in capsys.readouterr().err
    assert Path("out.jsonl").read_bytes() == content


def test_an_output_that_is_no_file_is_not_read_back(saved: str, source: str, monkeypatch: pytest.MonkeyPatch):
    model = CausalLM.load(saved)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} may never end"))
    found = plan(model, ByteTokenizer(), {1: "a", 2: "b"}, Path(os.devnull), options={"max_new_tokens": 2})
    assert (found.done, len(found.pending)) == (0, 2)


def test_blank_lines_are_no_prompts_and_a_byte_order_mark_is_no_part_of_one(saved: str, source: str):
    Path("in.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\n  \r\nfour\r\n")
    assert bulk(saved, "in.txt") == 0
    assert {key: row["prompt"] for key, row in by_id().items()} == {1: "one", 4: "four"}


def test_blank_lines_of_json_lines_are_no_prompts_and_ids_are_the_lines_numbers(saved: str, source: str):
    Path("in.jsonl").write_text('\n{"prompt": "two"}\n\n{"prompt": "four"}\n')
    assert bulk(saved, "in.jsonl") == 0
    assert {key: row["prompt"] for key, row in by_id().items()} == {2: "two", 4: "four"}


def test_past_the_context_a_line_says_so(saved: str, source: str, capsys):
    assert bulk(saved, source) == 0  # the longest prompt has 25 tokens, and 12 new ones are asked for
    said = "up to 37 tokens are requested, including the prompt, but the model was trained on 32"
    assert capsys.readouterr().err.count(said) == 1
    Path("in.txt").write_text("short\n")
    assert bulk(saved, source, target="short.jsonl") == 0
    assert "trained on" not in capsys.readouterr().err
