"""Evaluation of text: what is read, what it comes to, and what is told while it lasts."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from axon_core.cli import main
from axon_core.interfaces.model import CausalLM
from axon_core.progress import Clock
from axon_core.text.corpus import TextData
from axon_core.training import evaluation
from axon_core.training.build import build_trainer
from axon_core.training.callbacks.progress import Progress
from axon_core.training.evaluation import held_out_likelihood, report_progress_to
from axon_core.training.loop import fit
from axon_core.training.pretrained import load_pretrained
from axon_core.training.recipe import Recipe

SMALL = ["model.dim=16", "model.context=8", "model.n_layers=1", "trainer.steps=2", "trainer.precision=fp32"]


@pytest.fixture
def run(tmp_path: Path, short_text: Path) -> Path:
    recipe = Recipe.load("xllama-tiny", [f"data.path={short_text}", *SMALL, "trainer.eval_tokens=800"])
    fit(build_trainer(recipe), tmp_path / "run", recipe={"name": recipe.name, **recipe.tables})
    return tmp_path / "run"


def test_a_cap_reads_whole_windows_that_are_spread_over_the_held_out_part():
    data = TextData.of("".join(chr(97 + i % 7) for i in range(1000)), held_out=0.5)
    data = TextData(data.tokenizer, data.train, torch.arange(501, dtype=torch.int32))
    rows = torch.cat(list(data.held_out_batches(10, 4, most=45)))
    assert rows[:, 0].tolist() == [0, 100, 200, 300, 400] and rows.shape == (5, 11)
    everything = [rows[:, 1:].numel() for rows in data.held_out_batches(10, 64, most=500)]
    assert sum(everything) == sum(rows[:, 1:].numel() for rows in data.held_out_batches(10, 64)) == 500


def test_a_training_evaluates_the_cap_and_says_so(run: Path):
    said = json.loads((run / "run.json").read_text())["evaluation"]
    assert said["step"] == 2 and said["tokens"] == 800 and said["held_out_tokens"] == 1999
    model, tokenizer = load_pretrained(run / "model", CausalLM)
    recipe = Recipe.of(
        {k: v for k, v in json.loads((run / "run.json").read_text())["recipe"].items() if k != "name"}, "x", "x"
    )
    data = build_trainer(recipe, run / "model").data
    total = tokens = size = 0
    with torch.no_grad():
        for rows in data.held_out_batches(8, 1, 800):
            for place, token in enumerate(rows[0, 1:].tolist()):
                total -= model(rows[:, :-1])[0, place].log_softmax(-1)[token].item()
                tokens, size = tokens + 1, size + len(tokenizer.decode([token]).encode())
    assert said["loss"] == pytest.approx(total / tokens, rel=1e-5)
    assert said["bits_per_byte"] == pytest.approx(total / size / math.log(2), rel=1e-5)


@pytest.mark.parametrize("place", ["run", "run/model"])
def test_a_model_is_measured_on_a_text_of_the_users(run: Path, place: str, short_text: Path, capsys):
    text = run.parent / "mine.txt"
    text.write_text(short_text.read_text()[:3000])
    capsys.readouterr()
    assert main(["evaluate", str(run.parent / place), "--text", str(text), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    model, tokenizer = load_pretrained(run / "model", CausalLM)
    ids = torch.tensor(tokenizer.encode(text.read_text()))
    losses = []
    with torch.no_grad():
        for first in range(0, len(ids) - 1, 8):
            window = ids[first : first + 9][None]
            losses.append(torch.nn.functional.cross_entropy(model(window[:, :-1])[0], window[0, 1:], reduction="sum"))
    size = len(text.read_bytes()) - len(tokenizer.decode(ids[:1].tolist()).encode())
    total = sum(losses).item()
    assert found["tokens"] == len(ids) - 1
    assert found["loss"] == pytest.approx(total / found["tokens"], rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert found["nats_per_byte"] == pytest.approx(total / size, rel=1e-5)


def test_a_models_folder_needs_a_text(run: Path, capsys):
    assert main(["evaluate", str(run / "model")]) == 2
    assert "give a text with --text FILE" in capsys.readouterr().err
    assert main(["evaluate", str(run / "model"), "--txt", "x"]) == 2
    assert "unknown field 'txt' (did you mean 'text'?)" in capsys.readouterr().err


def test_an_evaluation_tells_how_far_it_is(monkeypatch: pytest.MonkeyPatch, run: Path):
    now = iter(range(0, 1000, 2))
    monkeypatch.setattr("axon_core.progress.time.monotonic", lambda: next(now))
    clock = Clock(1.0)  # a second call is two seconds after the first
    assert clock.line(0, 40) is None
    assert clock.line(0, 40) == "evaluating 0/40"
    assert clock.line(10, 40) == "evaluating 10/40  5.0/s  ETA 0:00:12"
    assert clock.line(40, 40) is None
    assert clock.line(0, 2000, "translating") is None  # another part has its own rate
    assert clock.line(1000, 2000, "translating") == "translating 1,000/2,000  500/s  ETA 0:00:02"
    clock = Clock(1.0, ends=True)  # with units of its own, and a line at the end
    assert clock.line(5, 10, "step", units=0) is None
    assert clock.line(6, 10, "step", units=64, unit="tokens", facts="loss 1.5") == (
        "step 6/10  loss 1.5  32 tokens/s  ETA 0:00:08"
    )
    assert clock.line(10, 10, "step", units=320, unit="tokens") == "step 10/10  128 tokens/s  ETA 0:00:00"
    told: list[tuple[int, int]] = []
    model, tokenizer = load_pretrained(run / "model", CausalLM)
    data = TextData.of("the " * 400, tokenizer, held_out=0.9)
    with report_progress_to(lambda done, total, doing: told.append((done, total))):
        held_out_likelihood(model, data)
    of = len(data.held_out) - 1
    assert told[-1] == (of, of) and len(told) > 1 and told == sorted(told)


def test_long_windows_of_a_large_vocabulary_are_evaluated_few_at_a_time(run: Path, monkeypatch):
    model, tokenizer = load_pretrained(run / "model", CausalLM)
    data = TextData.of("the " * 400, tokenizer, held_out=0.9)
    rows: list[int] = []
    model.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))  # pyright: ignore
    found = held_out_likelihood(model, data)
    assert max(rows) > 3
    rows.clear()
    monkeypatch.setattr(evaluation, "_SCORES", 3 * model.config.context * model.config.vocab_size)
    again = held_out_likelihood(model, data)
    assert max(rows) == 3 and again["loss"] == pytest.approx(found["loss"], rel=1e-6)
    short = held_out_likelihood(model, data, context=4)
    assert short["tokens"] == found["tokens"] and short["loss"] != found["loss"]


def test_progress_shows_the_evaluation_of_a_training(tmp_path: Path, short_text: Path, capsys):
    recipe = Recipe.load("xllama-tiny", [f"data.path={short_text}", *SMALL])
    fit(build_trainer(recipe), hooks=[Progress(seconds=0.0)])
    assert "evaluating 512/1,999  " in capsys.readouterr().err
