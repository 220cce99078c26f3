"""Around the steps of a training: hooks, interrupts, the run folder, progress and metrics."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for the toy that several test modules share
from toy_trainer import Toy, digest_after

from axon_core.cli import main
from axon_core.errors import CheckpointError, Interrupted, UsageError
from axon_core.registry.registry import refresh
from axon_core.training.callbacks.metrics import MetricsFile
from axon_core.training.callbacks.progress import Progress
from axon_core.training.hooks import hook
from axon_core.training.loop import fit
from axon_core.training.run_folder import RunFolder
from axon_core.training.signals import first_signal


def test_hooks_may_ask_and_a_failing_one_is_switched_off(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    events = []

    class Asking:
        @hook
        def step_end(self, fit):
            events.append(fit.state.step)
            return {2: "save", 4: "eval", 5: "stop"}.get(fit.state.step)

        @hook
        def eval_end(self, fit):
            events.append("eval")

        @hook
        def saved(self, path):
            events.append(path.name)

        @hook
        def fit_end(self):
            events.append("end")

    class Failing:
        @hook
        def step_end(self):
            events.append("failing")
            raise ValueError("broken")

    with caplog.at_level(logging.WARNING, "axon"):
        result = fit(Toy.make(), tmp_path / "run", hooks=[Failing(), Asking()])
    assert events == ["failing", 1, 2, "step-2", 3, 4, "eval", 5, "eval", "step-5", "end"]
    assert (result.step, result.status) == (5, "stopped")
    assert "hook Failing failed at step_end and is switched off" in caplog.text


def test_hooks_do_not_change_the_numbers():
    class Drawing:
        @hook
        def step_end(self):
            torch.rand(7)

    trainer = Toy.make(dropout=0.3)
    fit(trainer, hooks=[Drawing()])
    assert trainer.digest() == digest_after(dropout=0.3)


def test_a_misspelt_event_is_an_error():
    class Misspelt:
        @hook
        def step_ends(self):
            raise AssertionError("is never called")

    with pytest.raises(Exception, match="step_ends"):
        fit(Toy.make(), hooks=[Misspelt()])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_finishes_the_step_saves_and_says_how_to_go_on(tmp_path: Path, number):
    class Interrupting:
        @hook
        def step_end(self, fit):
            if fit.state.step == 5:
                os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as caught:
        fit(Toy.make(dropout=0.3), tmp_path / "run", hooks=[Interrupting()])
    assert caught.value.exit_code == 130
    assert "after step 5" in str(caught.value) and f"axon train --resume --out {tmp_path / 'run'}" in str(caught.value)
    assert signal.getsignal(number) is before
    trainer = Toy.make(dropout=0.3)
    fit(trainer, tmp_path / "run", resume=True)
    assert trainer.digest() == digest_after(dropout=0.3)


@pytest.mark.parametrize("event", ["fit_start", "saved"])
def test_an_interrupt_between_two_steps_ends_the_training_as_one_in_a_step_does(tmp_path: Path, event: str):
    def interrupt(self: object, fit: object, **facts: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    interrupting = type("Interrupting", (), {event: hook(interrupt)})()
    with pytest.raises(Interrupted, match=f"after step {0 if event == 'fit_start' else 4}; everything is saved"):
        fit(Toy.make(save_every=4), tmp_path / "run", hooks=[interrupting])


def test_a_second_interrupt_is_immediate(tmp_path: Path):
    class Interrupting:
        @hook
        def step_end(self, fit):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(Toy.make(), tmp_path / "run", hooks=[Interrupting()])


def test_a_run_folder_is_never_overwritten(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="--resume"):
        fit(Toy.make(), tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_the_run_folder_says_what_was_done(tmp_path: Path):
    fit(Toy.make(eval_every=6), tmp_path / "run", recipe={"name": "toy"})
    facts = json.loads((tmp_path / "run/run.json").read_text())
    assert facts["recipe"] == {"name": "toy"} and facts["trainer"]["seed"] == 0
    assert facts["versions"]["torch"] == torch.__version__ and facts["hardware"]["cpus"] and facts["command"]
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    held_out = [line["step"] for line in lines if line["split"] == "held_out" and line["name"] == "loss"]
    assert held_out == [6, 12]
    assert [line["step"] for line in lines if line["split"] == "train" and line["name"] == "loss"] == [*range(1, 13)]
    assert (tmp_path / "run/loss.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(file.name for file in (tmp_path / "run/model").iterdir()) == [
        "manifest.json", "tokenizer.json", "weights.pt",
    ]  # fmt: skip


def test_progress_without_a_terminal_is_plain_lines(capsys: pytest.CaptureFixture[str]):
    fit(Toy.make(eval_every=12), hooks=[Progress(sys.stderr, seconds=0)])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 13 and "\x1b" not in "".join(lines)
    assert lines[0].startswith("step 1/12  loss ") and " tokens/s  ETA 0:00:" in lines[0]
    assert lines[-1].startswith("step 12/12  held out: loss ")


@pytest.mark.parametrize("answer", ["sotp", ["save"]])
def test_a_hook_that_asks_for_something_unknown_is_switched_off(answer, caplog: pytest.LogCaptureFixture):
    class Asking:
        @hook
        def step_end(self):
            return answer

    with caplog.at_level(logging.WARNING, "axon"):
        assert fit(Toy.make(), hooks=[Asking()]).status == "finished"
    assert "a hook must return 'save', 'eval', 'stop' or nothing" in caplog.text


def test_a_run_whose_checkpoints_are_gone_does_not_start_over(tmp_path: Path):
    fit(Toy.make(), tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(CheckpointError, match="a trained model but no checkpoint to resume from"):
        fit(Toy.make(), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "model").is_dir() and (tmp_path / "run" / "metrics.jsonl").stat().st_size


def test_a_metric_that_cannot_be_written_is_said_and_training_saves_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    saves: list[int] = []

    class Watch:
        @hook
        def saved(self, fit):
            saves.append(fit.state.step)

    @hook
    def fit_start(self, fit):
        self._file = os.open("/dev/full", os.O_WRONLY | os.O_APPEND)

    monkeypatch.setattr(MetricsFile, "fit_start", fit_start)
    trainer = Toy.make(dropout=0.3)
    assert fit(trainer, tmp_path / "run", hooks=[Watch()]).status == "finished"
    assert saves == [1, 12]  # at once, and as it would have
    assert caplog.text.count("(No space left on device): training continues without metrics") == 1
    assert trainer.digest() == digest_after(dropout=0.3)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, CheckpointError])
@pytest.mark.parametrize("event", ["step_end", "eval_end", "saved"])
def test_a_hook_that_ends_the_process_ends_training_saved(tmp_path: Path, kind: type[BaseException], event: str):
    options = {"dropout": 0.3, "eval_every": 5, "save_every": 5}

    def leave(self, fit):
        if fit.state.step == 5:
            raise kind("enough")

    leaving = type("Leaving", (), {event: hook(leave)})
    leave.__name__ = event
    with pytest.raises(kind) as caught:
        fit(Toy.make(**options), tmp_path / "run", hooks=[leaving()])
    assert "A hook ended the training after step 5. The last checkpoint is step-5." in caught.value.__notes__[0]
    trainer, whole = Toy.make(**options), Toy.make(**options)
    fit(trainer, tmp_path / "run", resume=True)
    fit(whole, tmp_path / "whole")
    assert trainer.digest() == whole.digest()
    lines = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("run", "whole")]
    assert lines[0] == lines[1]  # the evaluation that was due at that step is there too


@pytest.mark.parametrize("event", ["step_end", "eval_end"])
def test_an_installed_hook_that_ends_the_process_costs_no_numbers(
    site, event: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    code = f"""
from axon_core.training import hook

class Leave:
    @hook
    def {event}(self, fit):
        if fit.state.step == 2:
            raise SystemExit(7)
"""
    options = ["xllama-tiny", "--set", "trainer.steps=4", "--set", "trainer.eval_every=2", "--set", "model.dim=16"]
    options += ["--set", "model.n_layers=1", "--set", "trainer.eval_tokens=500", "--set", "trainer.batch_size=2"]
    line = ["train", *options, "--out"]
    assert main([*line, str(tmp_path / "whole")]) == 0
    site.install("axon-leave", {"axon.v1.hooks": {"leave": "axon_leave:Leave"}}, {"axon_leave.py": code})
    with pytest.raises(SystemExit) as caught:
        main([*line, str(tmp_path / "run")])
    assert caught.value.code == 7
    assert "A hook ended the training after step 2. The last checkpoint is step-2. Resume" in capsys.readouterr().err
    monkeypatch.setenv("AXON_DISABLE_PLUGINS", "axon-leave")
    refresh()
    assert main(["train", "--resume", "--out", str(tmp_path / "run")]) == 0
    lines = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("run", "whole")]
    assert lines[0] == lines[1]


@pytest.mark.parametrize("where", ["batch", "evaluate"])
@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_a_trainer_that_ends_the_process_between_two_steps_is_saved(
    tmp_path: Path, kind: type[BaseException], where: str, monkeypatch: pytest.MonkeyPatch
):
    trainer = Toy.make(eval_every=5)
    real = getattr(trainer, where)

    def leave(*given):
        if not given or given == (5,):
            raise kind
        return real(*given)

    monkeypatch.setattr(trainer, where, leave)
    with pytest.raises(kind):
        fit(trainer, tmp_path / "run")
    assert RunFolder.open(tmp_path / "run").checkpoints.names() == ["step-5"]


def test_the_shells_hangup_after_the_systems_own_changes_nothing(tmp_path: Path):
    class HangingUp:
        @hook
        def step_end(self, fit):
            if fit.state.step == 5:
                os.kill(os.getpid(), signal.SIGHUP)
                os.kill(os.getpid(), signal.SIGHUP)

    with pytest.raises(Interrupted, match="after step 5; everything is saved"):
        fit(Toy.make(), tmp_path / "run", hooks=[HangingUp()])


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_hangup_is_never_deadly_until_the_end(first: signal.Signals, monkeypatch: pytest.MonkeyPatch):
    """Not for a moment: from the first signal on it is ignored, and what it did before comes back at the end."""
    before, real, given = signal.getsignal(signal.SIGHUP), signal.signal, []

    def recorded(number: int, handler: Any) -> Any:
        if number == signal.SIGHUP:
            given.append(handler)
        return real(number, handler)

    monkeypatch.setattr(signal, "signal", recorded)
    with first_signal(True) as caught:
        collect = signal.getsignal(signal.SIGHUP)
        signal.raise_signal(first)
        assert given == [collect, signal.SIG_IGN]
    assert caught == [first]
    assert given == [collect, signal.SIG_IGN, before]


def test_a_signal_that_is_ignored_stays_so(tmp_path: Path):
    class HangingUp:
        @hook
        def step_end(self):
            os.kill(os.getpid(), signal.SIGHUP)

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as `nohup` does
    try:
        assert fit(Toy.make(), tmp_path / "run", hooks=[HangingUp()]).status == "finished"
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
