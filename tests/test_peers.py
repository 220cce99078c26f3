"""Whatever happens to one process of a training, all of them end with one message, one exit code and saved state."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from rank_server import RECIPE

from axon_core.cli import main

HERE = Path(__file__).parent
Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, short_text: Path) -> Iterator[Ask]:
    """Return what asks a process in which torch is imported to play torchrun."""
    base = tmp_path_factory.mktemp("ranks").resolve()
    (base / "tiny.toml").write_text(RECIPE)
    (base / "text.txt").write_bytes(short_text.read_bytes())
    command = [sys.executable, HERE / "rank_server.py", base]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (
        (base / "stderr").open("w") as said,
        subprocess.Popen(command, stderr=said, env=environment, **pipes) as running,
    ):

        def ask(folder: Path, *args: str, world: int = 2, **request: Any) -> dict[str, Any]:
            request |= {"folder": str(folder), "args": ["train", *args], "world": world}
            running.stdin.write(json.dumps(request) + "\n")
            running.stdin.flush()
            line = running.stdout.readline()
            assert line, (base / "stderr").read_text()[-3000:]
            return json.loads(line)

        yield ask
        running.stdin.close()


@pytest.fixture
def folder(tmp_path: Path, short_text: Path) -> Path:
    (tmp_path / "tiny.toml").write_text(RECIPE)
    (tmp_path / "text.txt").write_bytes(short_text.read_bytes())
    return tmp_path


def errors(found: dict[str, Any]) -> list[str]:
    """Return all lines of the standard error that are not about progress."""
    return [
        line
        for text in found["err"]
        for line in text.splitlines()
        if not line.startswith(("step ", "tiny: ", "resumed "))
    ]


def test_only_the_first_speaks_and_the_folder_says_who_trained(server: Ask, folder: Path, capsys):
    found = server(folder, "tiny.toml")
    assert found["codes"] == [0, 0] and found["forced"] == [] and errors(found) == []
    assert found["out"][1] == found["err"][1] == ""
    assert "on cpu, in 2 processes (ddp), into runs/tiny-1" in found["err"][0]
    assert found["out"][0].count("finished after step 12") == 1
    run = json.loads((folder / "runs/tiny-1/run.json").read_text())
    assert run["processes"]["count"] == 2 and run["processes"]["strategy"] == "ddp"
    assert list(run["processes"]["places"].values()) == [2]
    assert [path.name for path in (folder / "runs").iterdir()] == ["tiny-1"]
    assert main(["info", str(folder / "runs/tiny-1")]) == 0
    assert "processes: 2 (ddp): 2 × cpu on " in capsys.readouterr().out


def test_four_processes_hold_two_copies(server: Ask, folder: Path):
    settings = ["--set", "trainer.parallel={strategy='fsdp', replicate=2}", "--stop-at", "2"]
    found = server(folder, "tiny.toml", *settings, world=4)
    assert found["codes"] == [0] * 4 and errors(found) == []
    assert "in 4 processes (fsdp)" in found["err"][0]


ENDINGS = {
    # what rank 1 does at its third step: the exit code, the message, and whether a checkpoint of that step is there
    "fails": (1, "Error: process 1: the disk of this machine is on fire", False),
    "crashes": (1, "Error: process 1: ZeroDivisionError: a mistake in a plugin", False),
    "killed": (1, "Error: process 1 ended without a message, after step 2: killed, or out of memory", False),
    "terminated": (130, "Error: interrupted after step 3; everything is saved. The last checkpoint is step-3", True),
    "hung_up": (130, "Error: interrupted after step 3; everything is saved. The last checkpoint is step-3", True),
    "interrupted": (130, "Error: interrupted after step 3; everything is saved. The last checkpoint is step-3", True),
}


@pytest.mark.parametrize(
    ("rank", "what"), [(0, "fails"), (0, "killed"), (0, "terminated"), *((1, what) for what in ENDINGS)]
)
def test_one_process_ends_and_so_do_all_with_one_message(what: str, rank: int, server: Ask, folder: Path):
    code, message, saved = ENDINGS[what]
    found = server(folder, "tiny.toml", "--out", "out", acts={rank: {"step": 2, "what": what}})
    said = errors(found)
    assert found["forced"] == [] and found["seconds"] < 20
    assert [one for one in found["codes"] if one != -9] == [code] * (1 if what == "killed" else 2), said
    told = [line for line in said if line.startswith("Error: ")]
    if rank == 0 and what == "fails":  # which tells it itself
        message = message.replace("process 1: ", "")
        assert "This was in process 0 of 2." in said
    assert len(told) == 1 and told[0].startswith(message.replace("process 1", f"process {rank}")), said
    assert (folder / "out/checkpoints/step-3").exists() == saved
    assert not (folder / "out/.lock").exists() or what == "killed"


@pytest.mark.parametrize("what", ["terminated", "interrupted"])
def test_a_signal_after_all_have_agreed_to_go_on_ends_all_after_the_next_step(what: str, server: Ask, folder: Path):
    found = server(folder, "tiny.toml", "--out", "out", acts={1: {"step": 1, "what": what, "late": True}})
    assert found["codes"] == [130, 130] and found["forced"] == [], errors(found)
    told = [line for line in errors(found) if line.startswith("Error: ")]
    assert len(told) == 1 and told[0].startswith("Error: interrupted after step 3; everything is saved."), told
    assert (folder / "out/checkpoints/step-3").exists()


def test_a_process_that_waits_for_one_that_never_came_ends_when_it_is_told_to(server: Ask, folder: Path):
    found = server(folder, "tiny.toml", "--out", "out", acts={0: {"step": -1, "what": "killed"}})
    assert all(found["codes"]) and found["forced"] == [] and found["seconds"] < 20, errors(found)


def test_the_second_request_ends_at_once(server: Ask, folder: Path):
    acts = {0: {"step": 2, "what": "interrupted", "times": 2}, 1: {"step": 2, "what": "interrupted", "times": 2}}
    found = server(folder, "tiny.toml", "--out", "out", acts=acts)
    assert found["codes"] == [130, 130] and found["forced"] == []
    assert errors(found).count("Interrupted.") == 1
    assert not (folder / "out/checkpoints/step-3").exists()


def test_a_process_that_does_not_answer_is_named_with_its_step(server: Ask, folder: Path):
    timeout = ["--set", "trainer.parallel.timeout=2"]
    found = server(folder, "tiny.toml", "--out", "out", *timeout, acts={1: {"step": 5, "what": "sleeps"}})
    said = [line for line in errors(found) if line.startswith("Error: ")]
    message = "process 1 did not answer in time (trainer.parallel.timeout), after step 5; process 0 waited after step 5"
    assert len(said) == 1 and said[0].startswith(f"Error: {message}"), errors(found)
    assert "Resume with: axon train --resume --out out" in found["err"][0] and "step-4" in found["err"][0]
    assert found["codes"][0] == 1 and found["forced"] == [] and found["seconds"] < 30


def test_a_moved_folder_and_a_full_disk_end_all(server: Ask, folder: Path):
    found = server(folder, "tiny.toml", "--out", "out", acts={0: {"step": 2, "what": "moves"}})
    said = [line for line in errors(found) if line.startswith("Error: ")]
    assert found["codes"] == [1, 1] and len(said) == 1 and "was moved or deleted" in said[0], errors(found)
    for rank in (0, 1):
        strategy = ["--set", "trainer.parallel.strategy=fsdp"]
        found = server(
            folder, "tiny.toml", "--out", f"full-{rank}", *strategy, acts={rank: {"step": 2, "what": "fills"}}
        )
        said = [line for line in errors(found) if line.startswith("Error: ")]
        assert found["codes"] == [1, 1] and len(said) == 1 and "File too large" in said[0], (rank, errors(found))


def test_what_is_wrong_for_all_is_said_once(server: Ask, folder: Path):
    wrong = {
        "batch_size=1": "batch_size 1 is less than the number of processes, 2",
        "parallel={strategy='fsdp', shard=2, replicate=3}": "replicate 3 × shard 2 must be the number of processes, 2",
        "stepz=1": "unknown field 'stepz'",
    }
    for setting, message in wrong.items():
        found = server(folder, "tiny.toml", "--set", f"trainer.{setting}")
        said = errors(found)
        assert found["codes"] == [2, 2] and len(said) == 1 and message in said[0], said
        assert "process 1" not in said[0] and "process 0" not in said[0]
    found = server(folder, "--bogus")
    assert found["codes"][0] == 2 and len([line for line in errors(found) if "--bogus" in line]) == 1


def test_a_process_with_other_data_recipe_or_versions_is_named(server: Ask, folder: Path):
    (folder / "other.txt").write_text((folder / "text.txt").read_text()[:-1] + "#")
    differ = "the processes of a training must be alike, but they differ in "
    wrong = {
        "data.path=none.txt": (1, "process 1: "),
        "data.path=other.txt": (2, differ),
        "trainer.steps=13": (2, f"{differ}trainer.steps, which is 12 in process 0 and 13 in process 1. Give all the"),
    }
    for setting, (code, message) in wrong.items():
        found = server(folder, "tiny.toml", own_args={1: ["--set", setting]})
        said = errors(found)
        assert found["codes"] == [code] * 2 and len(said) == 1 and said[0].startswith(f"Error: {message}"), said
    found = server(folder, "tiny.toml", acts={1: {"step": -1, "what": "other_version"}})
    assert found["codes"] == [2, 2] and "the version of axon-xllama, which is" in errors(found)[0], errors(found)
    assert not (folder / "runs").exists() or not any((folder / "runs").glob("*/checkpoints/*"))


def test_a_port_in_use_is_named(server: Ask, folder: Path):
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "False"}
        found = server(folder, "tiny.toml", world=1, environments={0: alone})
    said = errors(found)
    assert found["codes"] == [2] and len(said) == 1 and f"localhost:{port} is in use" in said[0], said


def test_a_lost_part_of_a_checkpoint_is_named(server: Ask, folder: Path):
    fsdp = ["--set", "trainer.parallel.strategy=fsdp"]
    assert server(folder, "tiny.toml", "--out", "out", "--stop-at", "6", *fsdp)["codes"] == [0, 0]
    parts = sorted((folder / "out/checkpoints/step-6").glob("tensors-00002-of-00002*"))
    assert parts, sorted((folder / "out/checkpoints/step-6").iterdir())
    parts[0].unlink()
    found = server(folder, "--resume", "--out", "out")
    said = [line for line in errors(found) if line.startswith("Error: ")]
    assert found["codes"] == [1, 1] and len(said) == 1 and parts[0].name in said[0], errors(found)


def weights(run: Path) -> bytes:
    """Return the weights at the end of a training."""
    return (run / "model/model.safetensors").read_bytes()


@pytest.mark.parametrize(("strategy", "precision"), [("ddp", "fp32"), ("fsdp", "fp64")])
def test_killed_at_any_moment_and_started_again_it_ends_at_the_same_weights(
    strategy: str, precision: str, server: Ask, folder: Path
):
    options = [f"parallel.strategy={strategy}", f"precision={precision}", "steps=40", "save_every=5", "ema=0.9"]
    longer = ["tiny.toml", *(word for option in options for word in ("--set", f"trainer.{option}"))]
    whole = server(folder, *longer, "--out", "whole")
    assert whole["codes"] == [0, 0], errors(whole)
    kills, number = int(os.environ.get("AXON_KILLS", "2")), 0
    while kills > 0:
        number += 1
        found = server(folder, *longer, restarts=kills, kills=kills, span=whole["seconds"], seed=number)
        assert found["codes"] == [0, 0] and found["forced"] == [], errors(found)
        assert found["attempts"] <= found["killed"] + 1 and found["seconds"] < 30 * found["attempts"]
        assert weights(folder / f"runs/tiny-{number}") == weights(folder / "whole")
        assert {run.name for run in (folder / "runs").iterdir()} == {f"tiny-{n}" for n in range(1, number + 1)}
        kills -= found["killed"]


def test_what_would_come_again_is_not_tried_again(server: Ask, folder: Path):
    found = server(folder, "tiny.toml", "--out", "out", restarts=2, acts={1: {"step": 2, "what": "fails"}})
    assert found["codes"] == [1, 1] and found["attempts"] == 3
    assert len([line for line in errors(found) if line.startswith("Error")]) == 1
    found = server(folder, "tiny.toml", "--out", "other", restarts=2, acts={1: {"step": 2, "what": "crashes"}})
    assert found["codes"] == [0, 0] and found["attempts"] == 2
    # A checkpoint that was named counts at first; started again, the training goes on from its last one.
    resumed = ["--resume", "--out", "other", "--from", "step-8", "--set", "trainer.save_every=1"]
    found = server(folder, "tiny.toml", *resumed, restarts=1, acts={0: {"step": 10, "what": "killed"}})
    assert found["codes"] == [0, 0], errors(found)
    assert [line for line in found["err"][0].splitlines() if line.startswith("resumed")] == [
        "resumed after step 8",
        "resumed after step 10",
    ]
