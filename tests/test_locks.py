"""One writer at a time: who comes second is refused by name, and a killed holder holds nothing."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the toy that several test modules share
from toy_trainer import Toy

from axon_core.checkpoint.atomic import atomic_file, claimed_file, claimed_folder
from axon_core.checkpoint.locks import lock_folder, lock_output, pinned
from axon_core.checkpoint.manifest import new_folder
from axon_core.cli import main
from axon_core.errors import CheckpointError, UsageError
from axon_core.registries import MODELS
from axon_core.training.hooks import hook
from axon_core.training.loop import fit
from axon_core.training.run_folder import RunFolder

SIZES = {"type": "xllama", "dim": 16, "n_layers": 1, "n_heads": 2, "context": 8}


def in_child(work: Callable[[], object]) -> int:
    """Start `work` in a process of its own, and return its id once it has said by a pipe that it holds its lock."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work_result = work()
            os.write(write, b"x")
            time.sleep(60)
            os._exit(bool(work_result))
        finally:
            os._exit(1)
    os.close(write)
    assert os.read(read, 1) == b"x"
    os.close(read)
    return pid


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def hold(folder: Path) -> Callable[[], object]:
    return lambda: lock_folder(folder).__enter__()


def test_the_second_is_refused_by_name_until_the_first_is_dead(tmp_path: Path):
    held = []
    pid = in_child(lambda: held.append(lock_folder(tmp_path)) or held[0].__enter__())
    try:
        with pytest.raises(UsageError) as caught, lock_folder(tmp_path):
            raise AssertionError("two hold it")
        assert f"{tmp_path} is in use: process {pid} on " in str(caught.value) and "pytest" in str(caught.value)
        assert "Wait until it ends, stop it, or choose another folder or file" in str(caught.value)
    finally:
        kill(pid)
    assert (tmp_path / ".lock").exists()
    with lock_folder(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_child_of_the_holder_does_not_keep_the_lock_when_the_holder_dies(tmp_path: Path):
    """As the workers that load data do."""
    pids = tmp_path / "pid"

    def with_worker() -> object:
        held.append(lock_folder(tmp_path))
        held[0].__enter__()
        worker = os.fork()
        if worker == 0:
            time.sleep(60)
            os._exit(0)
        return pids.write_text(str(worker))

    held: list = []
    kill(in_child(with_worker))
    try:
        with lock_folder(tmp_path):
            pass
    finally:
        os.kill(int(pids.read_text()), signal.SIGKILL)


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").symlink_to(tmp_path / "mine")
    with pytest.raises(CheckpointError, match="cannot write"):
        fit(Toy.make(), tmp_path / "run")
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize("resume", [False, True])
def test_two_trainings_in_one_folder(tmp_path: Path, resume: bool):
    refused: list[str] = []

    class Second:
        @hook
        def step_end(self, fit):
            drafts = fit.run.path / "checkpoints/.unfinished-01234567-step-9"
            drafts.mkdir(parents=True, exist_ok=True)
            with pytest.raises(UsageError) as caught:
                train()
            refused.append(str(caught.value))
            assert drafts.exists()  # what the first is writing is not swept away

    def train():
        return fit(Toy.make(), tmp_path / "run", resume=resume)

    if resume:
        fit(Toy.make(), tmp_path / "run", stop_at=2)
    whole = Toy.make()
    fit(whole)
    trainer = Toy.make()
    fit(trainer, tmp_path / "run", resume=resume, hooks=[Second()])
    assert trainer.digest() == whole.digest()
    assert refused and all(("in use: process" in text) == resume or "not empty" in text for text in refused)


def test_two_trainings_that_begin_at_once(tmp_path: Path):
    """Neither sees a file of the other's when it looks, and one of them is refused all the same."""
    (tmp_path / "run").mkdir()
    with lock_folder(tmp_path / "run"), pytest.raises(UsageError, match="in use: process"):
        fit(Toy.make(), tmp_path / "run")
    with lock_folder(tmp_path / "run"):
        assert main(["train", "axon-xllama:xllama-tiny", "--out", str(tmp_path / "run")]) == 2
    assert list((tmp_path / "run").iterdir()) == []


def test_two_writers_of_one_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    fit(Toy.make(steps=1), tmp_path / "run")
    prompts, out = tmp_path / "prompts.txt", tmp_path / "rows.jsonl"
    prompts.write_text("a\n")
    with lock_output(out):
        command = ["generate", str(tmp_path / "run"), "--input", str(prompts), "--output", str(out)]
        assert main(command) == 2
    assert f"{out} is in use: process {os.getpid()} on" in capsys.readouterr().err
    (tmp_path / "claims").mkdir()
    with lock_folder(tmp_path / "claims"):
        assert main(["reproduce", "rmsnorm", "--out", str(tmp_path / "claims")]) == 2
    assert "in use: process" in capsys.readouterr().err
    with claimed_folder(tmp_path / "model"), pytest.raises(UsageError, match="in use"):
        with claimed_folder(tmp_path / "model"):
            raise AssertionError("two make it")
    (tmp_path / "link").symlink_to(out)
    with claimed_file(out), pytest.raises(UsageError, match="in use"), claimed_file(tmp_path / "link"):
        raise AssertionError("two write it")


def test_the_next_writer_sweeps_what_a_killed_one_left_and_nothing_else(tmp_path: Path):
    def begin() -> object:
        kept.append(atomic_file(tmp_path / "out.txt"))
        kept[0].__enter__()
        return (tmp_path / f".unfinished-{'0' * 8}-model").mkdir()

    kept: list = []
    kill(in_child(begin))
    others = {".unfinished-mine", ".unfinished-00000000-another-out.txt", "notes"}
    for name in others:
        (tmp_path / name).write_text("mine")
    with claimed_file(tmp_path / "out.txt"), claimed_folder(tmp_path / "model"):
        assert {path.name for path in tmp_path.iterdir()} - {".model.lock", ".out.txt.lock"} == others
    assert {path.name for path in tmp_path.iterdir()} == others


def test_the_lock_of_one_that_was_killed_when_it_had_finished_goes_too(tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/weights").write_text("whole")
    (tmp_path / ".model.lock").write_text("{}")
    with pytest.raises(UsageError, match="nothing is overwritten"), claimed_folder(tmp_path / "model"):
        raise AssertionError("it is overwritten")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_is_written_into_a_draft_that_was_moved_away_does_not_make_its_folder_again(tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(CheckpointError, match=r"cannot write .*step-3"), new_folder(run / "step-3") as draft:
        run.rename(tmp_path / "elsewhere")
        MODELS.build(SIZES, vocab_size=3).save(draft / "model")
    assert not run.exists() and not list((tmp_path / "elsewhere").glob("step-*"))


@pytest.mark.parametrize("what", ["moved", "deleted", "replaced"])
def test_a_run_folder_that_goes_away_ends_training_and_no_half_folder_comes(tmp_path: Path, what: str):
    class Away:
        @hook
        def step_end(self, fit):
            if fit.state.step == 5:
                fit.run.path.rename(tmp_path / "elsewhere")
                if what == "deleted":
                    import shutil

                    shutil.rmtree(tmp_path / "elsewhere")
                if what == "replaced":
                    fit.run.path.mkdir()

    options = {"save_every": 3, "dropout": 0.3}
    with pytest.raises(CheckpointError, match=r"run was moved or deleted during training, so training stops"):
        fit(Toy.make(**options), tmp_path / "run", hooks=[Away()])
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())
    if what != "deleted":
        trainer, whole = Toy.make(**options), Toy.make(**options)
        fit(trainer, tmp_path / "elsewhere", resume=True)
        fit(whole, tmp_path / "whole")
        assert trainer.digest() == whole.digest()
        lines = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("elsewhere", "whole")]
        assert lines[0] == lines[1]


def test_a_checkpoint_that_is_read_stays_until_it_is_read(tmp_path: Path):
    fit(Toy.make(save_every=1, keep_checkpoints=1, steps=3), tmp_path / "run")
    run = RunFolder.open(tmp_path / "run")
    with run.checkpoints.reading() as found:
        assert found is not None and found.name == "step-3"
        fit(Toy.make(save_every=1, keep_checkpoints=1, steps=5), tmp_path / "run", resume=True)
        assert run.checkpoints.names() == ["step-3", "step-5"]
    fit(Toy.make(save_every=1, keep_checkpoints=1, steps=6), tmp_path / "run", resume=True)
    assert run.checkpoints.names() == ["step-6"]


def test_a_reader_takes_the_next_where_a_checkpoint_goes_before_it_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fit(Toy.make(save_every=1, keep_checkpoints=1, steps=3), tmp_path / "run")
    import axon_core.checkpoint.checkpoint as module

    real, calls = module.verify_together, []

    def verify(folder: Path) -> str | None:
        if not calls:
            calls.append(folder)
            fit(Toy.make(save_every=1, keep_checkpoints=1, steps=4), tmp_path / "run", resume=True)
        return real(folder)

    monkeypatch.setattr(module, "verify_together", verify)
    with RunFolder.open(tmp_path / "run").checkpoints.reading() as found:
        assert found is not None and found.name == "step-4"
    with pinned(tmp_path / "run/checkpoints/step-3") as there:
        assert not there


def test_a_kill_between_writing_and_pruning_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from axon_core.checkpoint.checkpoint import Checkpoints

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_prune", lambda self: None)
        fit(Toy.make(save_every=2, keep_checkpoints=1, steps=6), tmp_path / "run")
    assert RunFolder.open(tmp_path / "run").checkpoints.names() == ["step-2", "step-4", "step-6"]
    fit(Toy.make(save_every=2, keep_checkpoints=1, steps=6), tmp_path / "run", resume=True)
    assert RunFolder.open(tmp_path / "run").checkpoints.names() == ["step-6"]
