"""`axon lock`: a run's lock is written when the run begins, or later where that is true of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from axon_core.cli import main
from axon_core.registry import read_lock

SMALL = ["trainer.steps=2", "model.n_layers=1", "model.dim=32", "model.n_heads=2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("lab-lock") / "run"
    assert main(["train", "xllama-tiny", *(f"--set={each}" for each in SMALL), "--out", str(folder)]) == 0
    return folder


def test_a_run_is_locked_when_it_begins(trained: Path) -> None:
    lock = read_lock(trained)
    assert lock.at_start
    assert {"axon-core", "axon-gqa", "axon-xllama"} <= {each.name for each in lock.distributions}
