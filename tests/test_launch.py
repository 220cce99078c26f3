"""`axon train --nproc` and torchrun: what a user sees of a training in several processes, and what is left of it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from rank_server import RECIPE

BIN = Path(sys.executable).parent
LIMIT = 120.0

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked for in /proc")


@pytest.fixture
def folder(tmp_path: Path, short_text: Path) -> Path:
    (tmp_path / "tiny.toml").write_text(RECIPE)
    shutil.copy(short_text, tmp_path / "text.txt")
    return tmp_path


class Launched:
    """A training that a launcher started, in a terminal's foreground group of its own."""

    def __init__(self, folder: Path, *command: str) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.said = folder / "said"
        with self.said.open("w") as said:
            self.launcher = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=said, stderr=said, start_new_session=True
            )

    @property
    def workers(self) -> list[int]:
        """The processes of the training, by rank."""
        found: dict[int, int] = {}
        for place in Path("/proc").iterdir():
            try:
                if place.name.isdigit() and str(self.said.parent) == os.readlink(place / "cwd"):
                    rank = re.search(rb"\0RANK=(\d+)", (place / "environ").read_bytes())
                    if rank and (place / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                        found[int(rank[1])] = int(place.name)
            except OSError:
                continue
        return [found[rank] for rank in sorted(found)]

    def wait_for(self, there: Callable[[], object]) -> None:
        """Wait until something is there."""
        until = time.monotonic() + LIMIT
        while not there():
            assert time.monotonic() < until and self.launcher.poll() is None, self.said.read_text()
            time.sleep(0.05)

    def end(self) -> tuple[int, str]:
        """Wait for the end; return the exit code, and what was printed. No process is left."""
        code = self.launcher.wait(LIMIT)
        until = time.monotonic() + LIMIT
        while self.workers and time.monotonic() < until:
            time.sleep(0.05)
        assert self.workers == []
        text = self.said.read_text()
        assert "torch.distributed" not in text.replace("torch.distributed.run", ""), text
        return code, text


def steps(number: int, every: int) -> list[str]:
    """Return the options of a training of so many steps, with a checkpoint every so many."""
    settings = (f"steps={number}", f"save_every={every}", f"eval_every={number}")
    return [word for setting in settings for word in ("--set", f"trainer.{setting}")]


@pytest.mark.slow
def test_a_killed_process_is_started_again_and_the_training_continues(folder: Path):
    running = Launched(
        folder, str(BIN / "axon"), "train", "tiny.toml", "--nproc", "2", "--max-restarts", "1", *steps(300, 20)
    )
    checkpoints = folder / "runs/tiny-1/checkpoints"
    running.wait_for(lambda: list(checkpoints.glob("step-*")))
    os.kill(running.workers[1], signal.SIGKILL)
    code, text = running.end()
    assert code == 0 and "finished after step 300" in text, text
    assert text.count("Error: process 1 ended without a message") == 1 and text.count("Error") == 1
    assert re.findall(r"resumed after step \d+0", text) and "Traceback" not in text
    assert [run.name for run in (folder / "runs").iterdir()] == ["tiny-1"]


@pytest.mark.slow
def test_ctrl_c_saves_and_ends_all(folder: Path):
    running = Launched(folder, str(BIN / "axon"), "train", "tiny.toml", "--nproc", "2", *steps(100_000, 20))
    running.wait_for(lambda: list((folder / "runs/tiny-1/checkpoints").glob("step-*")))
    os.killpg(running.launcher.pid, signal.SIGINT)
    code, text = running.end()
    assert code == 130 and "Traceback" not in text, text
    [step] = re.findall(r"Error: interrupted after step (\d+); everything is saved\.", text)
    assert (folder / f"runs/tiny-1/checkpoints/step-{step}/manifest.json").exists()


@pytest.mark.slow
def test_processes_that_torchrun_leaves_alone_save_and_end(folder: Path):
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "axon_core")
    running = Launched(folder, *launcher, "train", "tiny.toml", "--out", "out", *steps(100_000, 100_000))
    metrics = folder / "out/metrics.jsonl"
    running.wait_for(lambda: metrics.exists() and metrics.stat().st_size > 0)
    running.launcher.kill()  # between checkpoints, which need the store that ends with it
    _, text = running.end()
    found = re.search(r"interrupted after step (\d+); everything is saved\.", text)
    assert found, text
    step = found[1]
    assert (folder / f"out/checkpoints/step-{step}/manifest.json").exists()


def test_the_options_of_the_launcher_need_each_other(folder: Path):
    from click.testing import CliRunner

    from axon_core.cli.train import command
    from axon_core.errors import UsageError

    for args, message in ((["--max-restarts", "1"], "needs --nproc"), (["--nproc", "2", "--dry-run"], "--dry-run")):
        found = CliRunner().invoke(command, [str(folder / "tiny.toml"), *args])
        assert isinstance(found.exception, UsageError) and message in str(found.exception)
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        found = CliRunner().invoke(command, [str(folder / "tiny.toml"), "--nproc", "2", "--port", port])
    assert isinstance(found.exception, UsageError) and f"port {port} is in use" in str(found.exception)
