"""Logs beside the metrics file: TensorBoard reads its own back; wandb is a fake module here that records its calls."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from toy_trainer import Toy

from axon_core.cli import main
from axon_core.errors import UsageError
from axon_core.training.callbacks.tensorboard import TensorBoard
from axon_core.training.callbacks.wandb import Wandb
from axon_core.training.hooks import hook
from axon_core.training.loop import fit


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return what TensorBoard shows of a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def metrics(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the numbers of the metrics file, in the precision that TensorBoard keeps."""
    found: dict[str, list[tuple[int, Any]]] = {}
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        number = pytest.approx(line["value"], rel=1e-6)
        found.setdefault(f"{line['split']}/{line['name']}", []).append((line["step"], number))
    return found


class Wreck:
    """Ends the training at a step, as a kill does: nothing is saved after the last checkpoint."""

    @hook
    def step_end(self, fit):
        if fit.state.step == 8:
            fit.run = None
            raise KeyboardInterrupt


class FakeWandb(ModuleType):
    """Records what is called, in wandb's place; it shows which calls are made, not what wandb does with them."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.codes: list[int] = []

    def init(self, **options: Any) -> FakeWandb:
        self.begun.append(options)
        return self

    def log(self, numbers: dict[str, float], *, step: int) -> None:
        self.logged.append((step, numbers))

    def finish(self, *, exit_code: int) -> None:
        self.codes.append(exit_code)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    for name in ("WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "wandb", fake := FakeWandb())
    return fake


def test_tensorboard_has_the_numbers_of_the_metrics_file(tmp_path: Path) -> None:
    fit(Toy.make(eval_every=6, log=["tensorboard"]), tmp_path / "run")
    found = scalars(tmp_path / "run" / "tensorboard")
    assert found == metrics(tmp_path / "run")
    assert [step for step, _ in found["train/loss"]] == [*range(1, 13)]
    assert [step for step, _ in found["held_out/loss"]] == [6, 12]


def test_a_resumed_run_continues_its_log_from_the_checkpoint(tmp_path: Path) -> None:
    options = {"eval_every": 3, "save_every": 5, "log": ["tensorboard"]}
    with pytest.raises(KeyboardInterrupt):
        fit(Toy.make(**options), tmp_path / "run", hooks=[Wreck()])
    before = scalars(tmp_path / "run" / "tensorboard")
    assert before["train/loss"][-1][0] == 8
    fit(Toy.make(**options), tmp_path / "run", resume=True)
    assert scalars(tmp_path / "run" / "tensorboard") == metrics(tmp_path / "run")
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 2


def test_a_log_changes_no_weight(tmp_path: Path) -> None:
    plain, logged = Toy.make(dropout=0.3), Toy.make(dropout=0.3, log=["tensorboard"])
    fit(plain)
    fit(logged, tmp_path / "run")
    assert plain.digest() == logged.digest()


def test_a_hook_of_ones_own_takes_the_place_of_the_named_one(tmp_path: Path) -> None:
    fit(Toy.make(log=["tensorboard"]), tmp_path / "run", hooks=[TensorBoard(tmp_path / "events")])
    assert scalars(tmp_path / "events")["train/loss"] and not (tmp_path / "run" / "tensorboard").exists()
    with pytest.raises(UsageError, match="TensorBoard needs a folder: give one to `fit`"):
        fit(Toy.make(), hooks=[TensorBoard()])


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_told_before_anything_is_done(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=rf"pip install 'axon-core\[{name}\]'"):
        fit(Toy.make(log=[name]), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert main(["train", "xllama-tiny", "--log", name, "--set", "data.path=nowhere", "--out", str(tmp_path)]) == 2
    assert f"pip install 'axon-core[{name}]'" in capsys.readouterr().err


def test_the_command_line_logs_and_the_run_keeps_it(tmp_path: Path, short_text: Path) -> None:
    out = ["--out", str(tmp_path / "run")]
    small = ["model.dim=16", "model.n_layers=1", "model.n_heads=2", "trainer.steps=4", f"data.path={short_text}"]
    given = [word for text in small for word in ("--set", text)]
    assert main(["train", "xllama-tiny", "--log", "tensorboard", *given, *out, "--stop-at", "2"]) == 0
    assert main(["train", "--resume", *out]) == 0
    assert [step for step, _ in scalars(tmp_path / "run" / "tensorboard")["train/loss"]] == [1, 2, 3, 4]


def test_wandb_is_offline_and_a_resumed_run_has_the_same_id(tmp_path: Path, wandb: FakeWandb) -> None:
    fit(Toy.make(eval_every=6, log=["wandb"]), tmp_path / "run", stop_at=6)
    fit(Toy.make(eval_every=6, log=["wandb"]), tmp_path / "run", resume=True)
    first, second = wandb.begun
    assert first["mode"] == "offline" and first["resume"] == "allow" and first["project"] == "axon"
    assert first["dir"] == str(tmp_path / "run") and first["config"]["trainer"]["steps"] == 12
    assert first["id"] == second["id"] and len(first["id"]) == 16
    assert [step for step, numbers in wandb.logged if "train/loss" in numbers] == [*range(1, 13)]
    assert [step for step, numbers in wandb.logged if "held_out/loss" in numbers] == [6, 12]
    assert wandb.codes == [0, 0]


def test_the_environment_decides_over_wandb(monkeypatch: pytest.MonkeyPatch, wandb: FakeWandb) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_PROJECT", "kites")
    fit(Toy.make(), hooks=[Wandb()])
    assert wandb.begun == [{"project": "kites", "mode": None, "resume": "allow"}]


def test_a_training_that_breaks_off_ends_its_log_as_failed(tmp_path: Path, wandb: FakeWandb) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(Toy.make(log=["wandb"]), tmp_path / "run", hooks=[Wreck()])
    assert wandb.codes == [1]
