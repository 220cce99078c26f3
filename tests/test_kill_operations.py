"""Whatever ends a command early, and wherever, the command run again ends at the bytes of one that was not disturbed.

The subjects are all installed trainers and all commands that write. They are killed at a file operation (in the middle,
where it is a write) and by a clock, at first and as they go on; their disk fills, their terminal closes, a second
process does the same, and their folder is moved. `AXON_KILLS=200` kills that often, all subjects together.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the helper that the server shares
from kill_subjects import names

KILLS = int(os.environ.get("AXON_KILLS", "0"))
OTHERS = ("timed", "full", "hung_up", "twice", "moved")
NAMES = names()

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("cc"), reason="file operations are watched by a preloaded C library"
)


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., dict[str, Any]]]:
    """Return what asks a process in which torch is imported to disturb a subject in some ways."""
    here, base = Path(__file__).parent, tmp_path_factory.mktemp("kills").resolve()
    library = base / "file_operations.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, here / "file_operations.c", "-ldl"], check=True)
    command = [sys.executable, here / "kill_server.py", base]
    environment = {**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        (base / "stderr").open("w") as said,
        subprocess.Popen(command, env=environment, stderr=said, **pipes) as server,
    ):

        def ask(subject: str, scenarios: list[str], seed: int) -> dict[str, Any]:
            server.stdin.write(json.dumps({"subject": subject, "scenarios": scenarios, "seed": seed}) + "\n")
            server.stdin.flush()
            line = server.stdout.readline()
            assert line, (base / "stderr").read_text()[-3000:]
            return json.loads(line)

        yield ask
        server.stdin.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_whatever_ends_a_command_it_ends_at_the_same_bytes_when_run_again(name: str, ask):
    place = NAMES.index(name)
    # The loop of all trainings is one: five of them meet with one each of what else may happen.
    others = [] if name == "align" or (name.startswith("train-") and place >= len(OTHERS)) else [OTHERS[place % 5]]
    found = ask(name, ["killed", *others], place)
    assert found["kills"] >= 1 and found["operations"] >= 10
    if KILLS:
        found = ask(name, [*OTHERS] * max(1, KILLS // 100), place)
        kinds = cycle(("killed", "timed"))
        while found["kills"] < -(-KILLS // len(NAMES)):
            found = ask(name, [next(kinds)], place)
    print(f"{name}: {found['kills']} kills, {found['attempts']} attempts, {found['seconds']:.0f} s")
    assert found["faults"] == []
    if name.startswith("train-"):
        assert {"out/model", "out/metrics.jsonl", "out/checkpoints/step-3/manifest.json"} <= set(found["whole"])


def test_all_trainers_are_killed():
    from axon_core.training.trainers import TRAINERS

    assert {"causal_lm", "translation", "ddpm", "sft", "reward", "dpo", "ppo", "ppo_control"} <= set(TRAINERS)
    assert {f"train-{key}" for key in TRAINERS} < set(NAMES)
