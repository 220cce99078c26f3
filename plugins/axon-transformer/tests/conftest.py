"""What several test files share: a recipe that trains in a moment, and a run made by it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from axon_core.cli import main
from axon_core.training import Recipe, build_trainer, fit

SMALL = [
    "model.dim=16",
    "model.n_heads=2",
    "model.encoder_layers=1",
    "model.decoder_layers=1",
    "data.train.reverse=200",
    "data.valid.reverse=20",
    "trainer.batch_size=128",
    "trainer.warmup=2",
    "trainer.steps=6",
]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(scope="session")
def small() -> Callable[..., Recipe]:
    """Return a function that makes of `reverse-tiny` a training of a moment, with further overrides."""
    return lambda *overrides: Recipe.load("reverse-tiny", [*SMALL, *overrides])


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory, small: Callable[..., Recipe]) -> Path:
    """A run folder with three checkpoints of a model that has hardly learnt anything."""
    plan = small("trainer.save_every=2", "trainer.keep_checkpoints=3")
    out = tmp_path_factory.mktemp("runs") / "small"
    fit(build_trainer(plan), out, recipe={"name": plan.name, **plan.tables})
    return out


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """Return a function that runs `axon`, checks the exit code, and returns what it printed and reported."""

    def run(*arguments: object, code: int = 0) -> tuple[str, str]:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == code
        output = capsys.readouterr()
        assert "Traceback" not in output.err and "bug in Axon" not in output.err
        return output.out, output.err

    return run
