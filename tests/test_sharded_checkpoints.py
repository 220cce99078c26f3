"""Checkpoints that several processes write at once, read by any number of processes in any strategy."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from threading import get_native_id
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from safetensors.torch import load_file, save_model
from torch.distributed.checkpoint import HuggingFaceStorageReader

sys.path.insert(0, str(Path(__file__).parent))
import sharded_workers as workers
from damage import cut, flip
from toy_trainer import Toy

from axon_core.checkpoint import saving
from axon_core.checkpoint.checkpoint import Checkpoints
from axon_core.checkpoint.stored import write_pieces
from axon_core.training.loop import fit

GROUPS = {1: ["plain"], 2: ["plain", "fsdp"], 4: ["fsdp", "hsdp"]}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], Path]:
    """A checkpoint by each group, in a folder of its own."""
    found = {}
    for size, kinds in GROUPS.items():
        folders = {kind: tmp_path_factory.mktemp(f"{kind}-{size}") for kind in kinds}
        assert workers.run(size, workers.write, folders, folder=tmp_path_factory.mktemp("run")) == [None] * size
        found |= {(size, kind): folder for kind, folder in folders.items()}
    return found


@pytest.mark.parametrize("size", GROUPS)
def test_what_any_group_wrote_any_other_reads_bit_for_bit(size: int, written, tmp_path: Path):
    assert workers.run(size, workers.read, GROUPS[size], [*written.values()], folder=tmp_path) == [None] * size


def test_every_element_is_written_once_by_processes_that_write_alike_much(written):
    for (size, kind), folder in written.items():
        files = sorted((folder / "step-3").glob("tensors*.safetensors"))
        sizes = [sum(tensor.nbytes for tensor in load_file(file).values()) for file in files]
        expected = load_file(folder / "expected.safetensors")
        # The tied head is in the tree under two names, in the files under one.
        tied = sum(tensor.nbytes for name, tensor in expected.items() if name.endswith("/head.weight"))
        assert len(files) == size and sum(sizes) == sum(t.nbytes for t in expected.values()) - tied, kind
        if kind != "fsdp":  # where the rows of a tensor decide who writes them, and there are too few
            assert max(sizes) - min(sizes) <= 0.1 * sum(sizes), (kind, sizes)
        assert {file.suffix for file in folder.rglob("*.*")} <= {".json", ".safetensors"}


def test_the_model_is_that_of_one_process_byte_for_byte(written, tmp_path: Path):
    for folder in written.values():
        expected = load_file(folder / "expected.safetensors")
        model = workers.Tiny(workers.Tiny.Config())
        averages = {n.removeprefix("/average/model."): t for n, t in expected.items() if n.startswith("/average/")}
        weights = {n.removeprefix("/models/model/"): t for n, t in expected.items() if n.startswith("/models/")}
        model.load_state_dict({**weights, **averages, "head.weight": averages["embedding.weight"]})
        save_model(model, str(tmp_path / "model.safetensors"))
        found = folder / "step-3/model"
        assert (found / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()
        loaded = workers.Tiny.load(found)
        assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_pytorchs_own_reader_reads_the_shards(written, tmp_path: Path):
    folder = written[4, "fsdp"]
    expected = load_file(folder / "expected.safetensors")
    with safe_open(folder / "expected.safetensors", "pt") as opened:
        names = [name for name in opened.keys() if not name.endswith("/head.weight")]
    found = {name: torch.empty_like(expected[name]) for name in names}
    dcp.load(found, storage_reader=HuggingFaceStorageReader(str(folder / "step-3")), no_dist=True)
    assert all(torch.equal(found[name], expected[name]) for name in names)


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
def test_a_damaged_shard_is_named_in_every_process(damage: Callable[[Path], None], tmp_path: Path):
    folder = tmp_path / "run"
    folder.mkdir()
    assert workers.run(2, workers.write, {"fsdp": folder}, folder=tmp_path) == [None] * 2
    damage(folder / "step-3/tensors-00002-of-00002.safetensors")
    what = "is missing" if damage is Path.unlink else "does not match its checksum"
    for said in workers.run(2, workers.find, folder, folder=tmp_path):
        assert said == (
            f"CheckpointError: checkpoint step-3 in {folder} is damaged: tensors-00002-of-00002.safetensors {what}; no "
            "other checkpoint is intact: start the run again in another folder"
        )


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("full", [0, 1])
def test_a_full_disk_of_one_process_ends_all_and_leaves_the_last(full: int, background: bool, tmp_path: Path):
    folder = tmp_path / "run"
    folder.mkdir()
    said = workers.run(2, workers.fill_up, folder, full, background, folder=tmp_path)
    for number, message in enumerate(said):
        kind = "own" if number == full else f"peer: process {full}"
        assert message.startswith(f"{kind}: cannot write {folder / 'step-2'}: File too large"), said
    assert [file.name for file in folder.iterdir()] == ["step-1"]


@pytest.mark.parametrize(("size", "kind"), [(1, "plain"), (2, "plain"), (2, "fsdp")])
def test_the_background_writes_the_values_of_its_step(size: int, kind: str, tmp_path: Path, written):
    folder = tmp_path / "run"
    folder.mkdir()
    assert workers.run(size, workers.meanwhile, kind, folder, 1.0, folder=tmp_path) == [""] * size
    found, same = folder / "step-3", written[size, kind] / "step-3"
    names = {file.relative_to(found) for file in found.rglob("*") if file.is_file()}
    assert names == {file.relative_to(same) for file in same.rglob("*") if file.is_file()}
    for name in names:  # as in the foreground, byte for byte
        assert (found / name).read_bytes() == (same / name).read_bytes(), name


def test_a_process_lost_while_the_background_writes_leaves_the_last_one(tmp_path: Path):
    folder = tmp_path / "run"
    folder.mkdir()
    first, _ = workers.run(2, workers.lose, folder, folder=tmp_path, lost=1)
    assert first == "step-1" and Checkpoints(folder).find() == folder / "step-1"


def test_a_training_resumed_by_other_processes_and_strategies_ends_as_one_that_was_not(tmp_path: Path):
    def train(size: int, name: str, resume: bool = False, stop: int | None = None, **options: object) -> list[float]:
        return workers.run(size, workers.train, tmp_path / name, options, resume, stop, folder=tmp_path)[0]

    whole = train(1, "whole")
    fsdp = {"strategy": "fsdp"}
    train(2, "run", stop=3, parallel=fsdp, checkpoint_in_background=True)
    train(4, "run", resume=True, stop=5, parallel={**fsdp, "replicate": 2})
    train(1, "run", resume=True, stop=6)
    found = train(2, "run", resume=True, checkpoint_in_background=True)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(whole), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("size", "kind", "background"), [(1, "plain", True), (2, "plain", False), (2, "fsdp", True)])
def test_what_an_export_changes_for_its_time_is_exported_and_not_saved(
    size: int, kind: str, background: bool, tmp_path: Path
):
    folder = tmp_path / "run"
    folder.mkdir()
    assert workers.run(size, workers.shift, kind, folder, background, folder=tmp_path) == [""] * size


def test_a_sharded_model_is_saved_by_itself_one_tensor_at_a_time(tmp_path: Path):
    assert workers.run(2, workers.save_alone, tmp_path / "model", None, folder=tmp_path) == ["", ""]
    first, second = workers.run(2, workers.save_alone, tmp_path / "full", 0, folder=tmp_path)
    assert first.startswith(f"cannot write {tmp_path / 'full'}: File too large") and second == f"process 0: {first}"


def test_every_process_names_the_number_that_is_not_finite_in_one(tmp_path: Path):
    assert workers.run(2, workers.spoil, tmp_path, folder=tmp_path) == ["the average of model.norm.bias"] * 2


def test_a_training_with_checkpoints_in_the_background_leaves_what_any_other_does(tmp_path: Path):
    trainers = {name: Toy.make(save_every=3, ema=0.9, checkpoint_in_background=name == "b") for name in ("a", "b")}
    for name, trainer in trainers.items():
        fit(trainer, tmp_path / name)
    for file in (file for file in (tmp_path / "a/checkpoints").rglob("*.*") if file.suffix != ".pt" and file.is_file()):
        assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes(), file
    assert trainers["a"].digest() == trainers["b"].digest()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives each thread a priority")
def test_writing_in_the_background_gives_way_to_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found: list[int] = []

    def noting(*parts: Any) -> tuple[str, str]:
        found.append(os.getpriority(os.PRIO_PROCESS, get_native_id()))
        return write_pieces(*parts)

    monkeypatch.setattr(saving, "write_pieces", noting)
    before = os.getpriority(os.PRIO_PROCESS, get_native_id())
    fit(Toy.make(save_every=3, checkpoint_in_background=True), tmp_path)
    assert found[0] > before  # the last one is waited for, and written at once
    assert os.getpriority(os.PRIO_PROCESS, get_native_id()) == before
