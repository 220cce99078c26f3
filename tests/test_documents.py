"""Files of any content are refused with a message: deep or huge JSON and TOML, packed files that are bombs."""

from __future__ import annotations

import gzip
import json
import logging
import tracemalloc
from pathlib import Path

import pytest
import torch

from axon_core.checkpoint.atomic import TENSORS, TREE
from axon_core.checkpoint.checkpoint import Checkpoints
from axon_core.checkpoint.locks import lock_folder
from axon_core.checkpoint.trees import read_tree, write_tree
from axon_core.cli import main
from axon_core.cli.output import MOST, Warnings
from axon_core.documents import DEPTH, gunzipped, parse_json, parse_toml
from axon_core.errors import CheckpointError, ContractError, DataError, UsageError
from axon_core.paths import expanded
from axon_core.text.records import read_json_lines
from axon_core.training.run_folder import RunFolder

DEEP = [2 * DEPTH, 900, 5_000, 100_000]


@pytest.mark.parametrize("depth", DEEP)
def test_deep_json_and_toml_are_refused(depth: int) -> None:
    with pytest.raises(ValueError, match="deep"):
        parse_json("[" * depth + "]" * depth)
    with pytest.raises(ValueError, match="deep"):
        parse_toml("a = " + "[" * depth + "]" * depth)


def test_what_is_as_deep_as_allowed_is_read() -> None:
    assert parse_json("[" * DEPTH + "]" * DEPTH)
    assert parse_toml("a = " + "[" * (DEPTH - 1) + "]" * (DEPTH - 1))
    with pytest.raises(ValueError, match="64 levels deep"):
        parse_json("[" * (DEPTH + 1) + "1" + "]" * (DEPTH + 1))


@pytest.mark.parametrize("text", ["9" * 30, "9" * 5_000, "[-" + "9" * 30 + "]"])
def test_integers_beyond_64_bits_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="64 bits"):
        parse_json(text)


@pytest.mark.parametrize(
    "value", ["[" * 5_000, "[" * 5_000 + "]" * 5_000, "9" * 5_000, "{a=" * 3_000 + "1" + "}" * 3_000], ids=range(4)
)
@pytest.mark.parametrize("command", ["train xllama-tiny", "align align-tiny"])
def test_set_values_of_any_size_are_refused_in_words(command: str, value: str, tmp_path: Path, capsys) -> None:
    assert main([*command.split(), "--set", f"trainer.steps={value}", "--out", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("Error: ") and "bug in Axon" not in err and "Traceback" not in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["a = " + "[" * 5_000, "a = " + "9" * 5_000, "\ud800"], ids=range(3))
def test_a_recipe_of_any_content_is_refused_in_words(text: str, tmp_path: Path, capsys) -> None:
    file = tmp_path / "recipe.toml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    for command in ("train", "align"):
        assert main([command, str(file)]) == 2
        assert "not valid TOML" in capsys.readouterr().err


def test_a_file_that_unpacks_to_far_more_is_refused_and_others_are_read(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.jsonl.gz"
    bomb.write_bytes(gzip.compress(b" " * (200 << 20), 9))
    tracemalloc.start()
    with pytest.raises(ValueError, match="100 times"):
        gunzipped(bomb)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20  # at most a few pieces are held at once
    tracemalloc.stop()
    with pytest.raises(DataError, match="100 times"):
        list(read_json_lines(bomb))
    lines = [json.dumps({"prompt": "x" * 100}) + "\n"] * 10_000
    packed = tmp_path / "fine.jsonl.gz"
    packed.write_bytes(gzip.compress("".join(lines[:5_000]).encode()) + gzip.compress("".join(lines[5_000:]).encode()))
    assert len(list(read_json_lines(packed))) == 10_000
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot read"):
        list(read_json_lines(packed))
    empty = tmp_path / "empty.gz"
    empty.write_bytes(gzip.compress(b""))
    assert gunzipped(empty) == b""


def test_a_path_with_a_zero_byte_is_refused() -> None:
    with pytest.raises(DataError, match="zero byte"):
        expanded("a\0b")


DAMAGE = ["[" * 3_000, '{"a": ' * 900 + "1" + "}" * 900, '{"id": ' + "9" * 5_000 + "}", "\udcff", "[1]", "{"]


@pytest.mark.parametrize("text", DAMAGE, ids=range(len(DAMAGE)))
def test_every_reader_of_json_refuses_it_in_words(text: str, tmp_path: Path) -> None:
    content = text.encode("utf-8", "surrogateescape")
    (tmp_path / TREE).write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        read_tree(tmp_path)
    (tmp_path / "step-1").mkdir()
    (tmp_path / "step-1" / TREE).write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        Checkpoints(tmp_path).learning_rate("step-1")
    (tmp_path / "metrics.jsonl").write_bytes(content + b"\n")
    assert [*RunFolder(tmp_path, {}).read_metrics()] == []
    (tmp_path / "rows.jsonl").write_bytes(content + b"\n")
    with pytest.raises(DataError, match=r"line 1 of .*rows\.jsonl"):
        [*read_json_lines(tmp_path / "rows.jsonl")]


@pytest.mark.parametrize("text", DAMAGE, ids=range(len(DAMAGE)))
def test_a_lock_says_nothing_of_its_holder_where_it_is_damaged(text: str, tmp_path: Path) -> None:
    with lock_folder(tmp_path):
        next(tmp_path.iterdir()).write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(UsageError, match="in use: another process is writing to it"), lock_folder(tmp_path):
            raise AssertionError("locked twice")


def test_a_state_that_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    deep: list = []
    for _ in range(DEPTH):
        deep = [deep]
    with pytest.raises(ContractError, match="64 levels deep"):
        write_tree(tmp_path, {"deep": deep})
    write_tree(tmp_path, {"generator": 1 << 127})  # as numpy's PCG64
    assert read_tree(tmp_path) == {"generator": 1 << 127}


def test_a_state_that_does_not_fit_its_tensors_is_damaged(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a": torch.zeros(2)})
    for tree in ({"a": {"$tensor": "/b"}}, {"a": {"$tensor": []}}, {"a": {"$number": "x"}}):
        (tmp_path / TREE).write_text(json.dumps(tree))
        with pytest.raises(CheckpointError, match="is damaged, or does not match"):
            read_tree(tmp_path)
    (tmp_path / TENSORS).unlink()
    with pytest.raises(CheckpointError, match="is damaged"):
        read_tree(tmp_path)


def test_a_warning_that_quotes_a_long_value_is_shortened(capsys) -> None:
    Warnings().emit(logging.LogRecord("axon", logging.WARNING, "", 0, "drops %s, the rest", ("x" * 100_000,), None))
    shown = capsys.readouterr().err
    assert len(shown) <= MOST + 1 and shown.startswith("drops xx") and shown.endswith("xx, the rest\n")
