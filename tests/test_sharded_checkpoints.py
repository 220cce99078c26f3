"""Checkpoints that several processes write at once, read by any number of processes in any strategy."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import sharded_workers as workers

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
