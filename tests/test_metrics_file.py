"""`metrics.jsonl` that was damaged: what can be read is read, all lines stay, and the run goes on."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the toy that several test modules share
from toy_trainer import Toy, digest_after

from axon_core.json_text import to_json
from axon_core.training.loop import fit
from axon_core.training.run_folder import RunFolder

DAMAGES = {
    "odd bytes": b"\xff\xfe\x00",
    "nothing": b"",
    "a number": b"5",
    "a list": b"[1]",
    "no step": b'{"split": "train", "name": "loss", "value": 1.0}',
    "a step that is none": b'{"step": "x", "split": "train", "name": "loss", "value": 1.0}',
    "a value that is none": b'{"step": 1, "split": "train", "name": "loss", "value": null}',
    "half a line": b'{"step": 1, "spl',
    "brackets": b"[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_in_one_line_costs_no_other(tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture):
    fit(Toy.make(), tmp_path / "run", stop_at=6)
    file = tmp_path / "run/metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:5], damage + b"\n", *lines[5:]]))
    read = [*RunFolder.open(tmp_path / "run").read_metrics()]
    assert read == [json.loads(line) for line in lines]
    assert f"left out of {file}: 1 damaged line\n" in caplog.text
    trainer = Toy.make()
    fit(trainer, tmp_path / "run", resume=True)
    assert trainer.digest() == digest_after()
    fit(Toy.make(), tmp_path / "whole")
    whole = (tmp_path / "whole/metrics.jsonl").read_bytes().splitlines(keepends=True)
    assert file.read_bytes().splitlines(keepends=True) == [*whole[:5], damage + b"\n", *whole[5:]]
    assert (tmp_path / "run/loss.png").exists()


@pytest.mark.parametrize("tail", [b'{"step": 5, "spl', b"\0" * 4096, b"\xff"])
def test_a_last_line_that_was_cut_off_goes(tmp_path: Path, tail: bytes):
    fit(Toy.make(), tmp_path / "run", stop_at=6)
    with (tmp_path / "run/metrics.jsonl").open("ab") as file:
        file.write(tail)
    fit(Toy.make(), tmp_path / "run", resume=True)
    fit(Toy.make(), tmp_path / "whole")
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


def test_a_number_that_is_not_finite_is_read_as_it_was(tmp_path: Path):
    fit(Toy.make(), tmp_path / "run", stop_at=2)
    run = RunFolder.open(tmp_path / "run")
    lines = [{"step": 2, "split": "held_out", "name": "bound", "value": value} for value in (math.nan, -math.inf, 1)]
    run.metrics.write_text("".join(to_json(line) + "\n" for line in lines))
    nan, *others = (line["value"] for line in run.read_metrics())
    assert math.isnan(nan) and others == [-math.inf, 1]
