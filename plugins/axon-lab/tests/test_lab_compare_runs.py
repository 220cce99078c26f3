"""The runs of `axon compare` survive what happens to their processes, and measure what `axon train` would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from axon_core import Recipe, build_trainer, fit
from axon_lab.compare.folder import ComparisonFolder
from axon_lab.compare.results import RunResult

VARY = ("--vary", "model.attention.type=MHA,MQA", "--seeds", "1")
MHA, MQA = "000-MHA-0", "001-MQA-0"


ACTIONS = '''
import os, signal, time
from pathlib import Path
from axon_core import ConfigError
from axon_core.training import hook

class Actions:
    """After a step, does what a file with the name of the run's folder says."""
    @hook
    def step_end(self, fit):
        if fit.run is None or fit.state.step != int(os.environ["LAB_STEP"]):
            return
        file = Path(os.environ["LAB_ACTIONS"], fit.run.path.name)
        what = file.read_text() if file.exists() else ""
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "fail":
            raise ConfigError([(("trainer",), "this run was told to fail")])
        if what == "hold":
            file.with_suffix(".held").write_text(str(os.getpid()))
            while file.exists():
                time.sleep(0.02)
'''
"""A hook of a distribution outside the tree, by which a test reaches into a run's process."""


class Bench:
    """A recipe, a folder for its comparison, and files that tell its runs what to do."""

    def __init__(self, folder: Path, recipe: Path) -> None:
        self.out, self.actions, self.recipe = folder / "out", folder / "actions", folder / "tiny.toml"
        self.recipe.write_text(recipe.read_text())
        self.actions.mkdir()
        self.words = [str(self.recipe), *VARY, "--evaluations", "4", "--out", str(self.out)]

    def tell(self, run: str, what: str) -> Path:
        (self.actions / run).write_text(what)
        return self.actions / run

    def held(self, run: str) -> int:
        """Wait until a run is held, and return its process."""
        file = (self.actions / run).with_suffix(".held")
        until = time.monotonic() + 120
        while not (file.exists() and file.read_text()):
            assert time.monotonic() < until, "the run was not reached"
            time.sleep(0.02)
        process = int(file.read_text())
        file.unlink()
        return process

    def reference(self, attention: str) -> float:
        """Return what the recipe's training gives in this process, without interruption."""
        trainer = build_trainer(Recipe.load(self.recipe, [f"model.attention.type={attention}", "trainer.seed=0"]))
        return fit(trainer, progress=False).metrics["loss"]

    def results(self) -> dict[str, RunResult]:
        """Return the run of each cell, by its attention."""
        return {cell.values[0]: cell.runs[0] for cell in ComparisonFolder.open(self.out).comparison().cells}


@pytest.fixture
def bench(tmp_path, tiny_recipe, outside, monkeypatch) -> Bench:
    outside.install("lab-test-actions", {"hooks": {"actions": "lab_actions:Actions"}}, "lab_actions", ACTIONS)
    found = Bench(tmp_path, tiny_recipe)
    monkeypatch.setenv("LAB_ACTIONS", str(found.actions))
    monkeypatch.setenv("LAB_STEP", "2")
    return found


def await_end(process: int) -> None:
    until = time.monotonic() + 120
    while Path(f"/proc/{process}").exists():
        assert time.monotonic() < until, "the run did not end"
        time.sleep(0.05)


@pytest.mark.slow
def test_killed_runs_continue_and_failed_ones_wait_to_be_asked_for(bench: Bench, compare, capsys):
    killed, failing = bench.tell(MHA, "kill"), bench.tell(MQA, "fail")
    assert compare(*bench.words) == 1
    first = bench.results()
    assert (first["MHA"].status, first["MHA"].reason) == ("killed", "killed by SIGKILL")
    assert first["MQA"].status == "failed"
    assert "this run was told to fail" in first["MQA"].reason
    assert "2 of 2 runs are not done" in capsys.readouterr().err

    killed.unlink()
    failing.unlink()
    assert compare(*bench.words) == 1  # continues the killed run alone
    second = bench.results()
    assert (second["MHA"].status, second["MQA"].status) == ("done", "failed")
    assert [point.step for point in second["MHA"].curve] == [1, 2, 3, 4]

    assert compare(*bench.words, "--retry") == 0
    done = bench.results()
    for name in ("MHA", "MQA"):  # bit for bit, although one was killed
        assert done[name].value == bench.reference(name)
        assert done[name].steps == 4
        assert done[name].seconds > 0 and done[name].decode_tokens_per_s > 0
        assert done[name].memory_bytes > 50e6
        seconds = [point.seconds for point in done[name].curve]
        assert seconds == sorted(seconds)

    before = {file: file.stat().st_mtime_ns for file in bench.out.rglob("result.json")}
    assert compare("--report", bench.out) == 0
    assert bench.results() == done
    assert compare(*bench.words) == 0  # nothing is left to do
    assert before == {file: file.stat().st_mtime_ns for file in bench.out.rglob("result.json")}
    assert_others_are_refused(bench, compare, capsys)


def assert_others_are_refused(bench: Bench, compare, capsys) -> None:
    """Another comparison in the same folder gets one message that names what differs."""
    others = {
        "the seeds (0 there, 0 1 here)": [*bench.words, "--seeds", "2"],
        "--set (none there, model.dim=32 here)": [*bench.words, "--set", "model.dim=32"],
        "--budget (none there, steps=4 here)": [*bench.words, "--budget", "steps=4"],
        "--vary": [bench.words[0], "--vary", "model.dim=16,32", *bench.words[3:]],
    }
    capsys.readouterr()
    for named, words in others.items():
        assert compare(*words) == 2
        said = capsys.readouterr().err
        assert "holds another comparison" in said and named in said
    bench.recipe.write_text(bench.recipe.read_text().replace("batch_size = 4", "batch_size = 8"))
    assert compare(*bench.words) == 2
    assert "what the recipe says, which has changed" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_comparison_and_an_interrupted_one_lose_nothing(bench: Bench, compare, monkeypatch, capsys):
    hold = bench.tell(MHA, "hold")
    code = "import sys; from axon_core.cli import main; raise SystemExit(main(sys.argv[1:]))"
    parent = subprocess.Popen([sys.executable, "-c", code, "compare", *bench.words], stderr=subprocess.DEVNULL)
    child = bench.held(MHA)
    assert compare(*bench.words) == 2  # the folder is locked
    assert "only one process can write" in capsys.readouterr().err
    parent.kill()
    parent.wait()
    time.sleep(0.3)  # until the run has heard of it
    hold.unlink()
    await_end(child)
    folder = ComparisonFolder.open(bench.out)
    assert (folder.run(next(iter(folder.keys()))) / "checkpoints" / "step-2").is_dir()
    assert compare("--report", bench.out) == 0
    assert {run.status for run in bench.results().values()} == {"waiting"}

    monkeypatch.setenv("LAB_STEP", "3")
    hold = bench.tell(MHA, "hold")

    def interrupt() -> None:
        bench.held(MHA)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1.0)
        hold.unlink()

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert compare(*bench.words) == 130
    thread.join()
    assert "Continue with the same command" in capsys.readouterr().err
    assert {run.status for run in bench.results().values()} == {"waiting"}

    assert compare(*bench.words) == 0
    assert bench.results()["MHA"].value == bench.reference("MHA")  # bit for bit, after two interruptions


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte; only root can make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if made.returncode:
        pytest.skip("only root can make a small disk")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_the_comparison_with_its_message_and_a_later_call_continues(
    bench: Bench, compare, small_disk: Path, capsys
):
    bench.out = small_disk / "out"
    bench.words[-1] = str(bench.out)
    ballast = small_disk / "ballast"
    bench.tell(MHA, "hold")

    def fill() -> None:
        bench.held(MHA)
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        (bench.actions / MHA).unlink()

    thread = threading.Thread(target=fill)
    thread.start()
    assert compare(*bench.words) == 1
    thread.join()
    said = capsys.readouterr().err
    assert "No space left on device; free some space" in said and "Then call the same command again" in said
    ballast.unlink()
    assert compare("--report", bench.out) == 0
    assert json.loads((bench.out / "design.json").read_text())["recipe"] == "tiny"
    assert compare(*bench.words) == 0
    assert bench.results()["MHA"].value == bench.reference("MHA")
