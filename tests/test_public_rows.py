"""Rows in the shapes of public data train as they are, exactly like the same content in Axon's own records."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from public_rows import CASES, Case, Rows

from axon_core import MODELS, Key, Trainer
from axon_core.text import CHAT_TEMPLATES, ByteTokenizer, Message
from axon_core.training import Recipe, build_trainer

TRAINERS = {"sft": "demonstration", "reward": "preference", "dpo": "preference", "kto": "feedback", "ppo": "prompt"}
RUNS = [
    pytest.param(trainer, case, id=f"{trainer}-{case.schema}-{number}")
    for number, case in enumerate(CASES)
    for trainer, purpose in TRAINERS.items()
    if purpose in case.own
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small language model and its tokenizer."""
    folder, tokenizer = tmp_path_factory.mktemp("saved") / "model", ByteTokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"vocab_size": tokenizer.vocab_size, "context": 128, "dim": 16, "n_layers": 1, "n_heads": 2}
        MODELS.build("xllama", **sizes).save(folder)
    tokenizer.save(folder)
    return str(folder)


def write(file: Path, rows: Rows) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def build(kind: str, file: Path, saved: str, **data: Any) -> Trainer:
    init: dict[str, Any] = {"init": saved}
    reward = {"type": "regex", "pattern": "[a-z]"}
    tables = {
        "model": {"policy": init, "reward": reward} if kind == "ppo" else init,
        "data": {"path": str(file), "held_out": 0.4, **data},
        "trainer": {"type": kind, "batch_size": 2, **({"response_tokens": 4} if kind == "ppo" else {})},
    }
    return build_trainer(Recipe.of(tables, "rows", "a test"))


def losses(trainer: Trainer) -> dict[str, float]:
    with torch.no_grad():
        data = trainer.collect(trainer.batch(0), Key((0,)))
        found = {name: term.item() for name, term in trainer.loss(data).items()}
        return found | {f"held out {name}": value for name, value in trainer.evaluate().items()}


@pytest.mark.parametrize(("kind", "case"), RUNS)
def test_rows_train_as_they_are(kind: str, case: Case, saved: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    public = build(kind, write(tmp_path / "public.jsonl", case.rows), saved)
    told = [record.getMessage() for record in caplog.records if record.name == "axon"]
    own = build(kind, write(tmp_path / "own.jsonl", case.own[TRAINERS[kind]]), saved)
    assert public.data_digest() == own.data_digest()
    assert losses(public) == losses(own)
    assert len(told) == bool(case.ignored)
    for field in case.ignored:
        assert repr(field) in told[0] and case.schema in told[0]
    assert len([record for record in caplog.records if record.name == "axon"]) == len(told)  # none for our own


def test_twelve_schemas_or_more_are_tested():
    assert len({case.schema for case in CASES}) >= 12


@pytest.mark.parametrize("form", ["jsonl.gz", "json", "json.gz", "parquet"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.schema)
def test_a_file_may_be_lines_an_array_or_a_table(case: Case, form: str, saved: str, tmp_path: Path):
    file = tmp_path / f"rows.{form}"
    if form == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        table = pytest.importorskip("pyarrow").Table.from_pylist
        try:
            parquet.write_table(table(case.rows), file)
        except (pytest.importorskip("pyarrow").ArrowInvalid, pytest.importorskip("pyarrow").ArrowTypeError):
            pytest.skip("a column of parquet has one type")
    else:
        lines = "\n".join(json.dumps(row) for row in case.rows)
        text = lines if "jsonl" in form else json.dumps(case.rows, indent=1)
        data = text.encode("utf-8-sig")
        file.write_bytes(gzip.compress(data) if form.endswith("gz") else data)
    kind = next(kind for kind, purpose in TRAINERS.items() if purpose in case.own)
    plain = build(kind, write(tmp_path / "rows.jsonl", case.rows), saved)
    assert build(kind, file, saved).data_digest() == plain.data_digest()


def test_fields_of_other_names_are_mapped(saved: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    rows = [{"question": f"{n} + 1 =", "answer": f" {n + 1}", "source": "me", "prompt": "unused"} for n in range(3)]
    own = [{"prompt": row["question"], "completion": row["answer"]} for row in rows]
    fields = {"prompt": "question", "completion": "answer"}
    mapped = build("sft", write(tmp_path / "a.jsonl", rows), saved, fields=fields)
    assert "'source'" in caplog.text and "'question'" not in caplog.text
    assert mapped.data_digest() == build("sft", write(tmp_path / "b.jsonl", own), saved).data_digest()


def test_invalid_rows_are_left_out_on_request(saved: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    good = CASES[0].rows
    rows = [good[0], {**good[1], "output": ""}, *good[1:]]
    file = write(tmp_path / "a.jsonl", rows)
    with caplog.at_level(logging.WARNING, "axon"):
        left = build("sft", file, saved, skip_invalid=True)
    assert f"1 invalid rows left out, first line 2 of {file}" in caplog.text
    assert left.data_digest() == build("sft", write(tmp_path / "b.jsonl", good), saved).data_digest()


@pytest.mark.parametrize("kind", ["sft", "reward", "dpo", "kto", "ppo"])
def test_the_template_of_the_recipe_renders_prompts_and_answers(kind: str, saved: str, tmp_path: Path):
    case = next(case for case in CASES if case.schema == ("sharegpt" if kind == "sft" else "hh-rlhf"))
    file = write(tmp_path / "rows.jsonl", case.rows)
    trainer: Any = build(kind, file, saved, template="llama2")
    data = trainer.data
    tokenizer, template = data.tokenizer, CHAT_TEMPLATES.build("llama2")
    messages = [Message(**one) for one in case.own[TRAINERS[kind]][0].get("prompt", [])]
    if kind == "sft":
        dialogue = [Message(**one) for one in case.own["demonstration"][0]["messages"]]
        assert data.train[0].tokens == template(tokenizer, dialogue)
        return
    asked, first = template(tokenizer, messages), data.train[0]
    if kind == "ppo":
        assert list(first.tokens) == asked
        return
    answers = {"reward": lambda: first.answers[0], "dpo": lambda: first.chosen, "kto": lambda: first.completion}
    whole = template(tokenizer, [*messages, Message(role="assistant", content="3")])
    assert first.prompt == asked and asked + answers[kind]() == whole
