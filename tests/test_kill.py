"""Killing a training at any moment loses nothing: it resumes to the weights of a run that was never killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

# One process imports torch and then forks a child for each attempt, so that the twenty kills cost seconds, not minutes.
KILLER = """
import json, os, random, shutil, signal, sys, time
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from toy_trainer import Toy
from axon_core.training.loop import fit
from axon_core.checkpoint.manifest import verify

OPTIONS = dict(steps=60, save_every=2, eval_every=10, dropout=0.3, ema=0.9, optimizer={"type": "muon"}, dim=48)

def train(folder):
    # Without the plot: it would take most of the time, and comes after the last checkpoint.
    sys.modules["matplotlib.figure"] = None
    trainer = Toy.make(**OPTIONS)
    fit(trainer, folder, resume=True)
    (folder / "digest").write_text(str(trainer.digest()))

def child(folder):
    pid = os.fork()
    if pid == 0:
        try:
            train(folder)
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
    return pid

def outcome(folder):
    lines = (folder / "metrics.jsonl").read_text()
    return {"digest": (folder / "digest").read_text(), "metrics": lines}

fit(Toy.make(**OPTIONS))  # torch imports much of itself on the first update
base, moments = Path(sys.argv[2]), random.Random(int(sys.argv[3]))
begun = time.monotonic()
assert os.waitpid(child(base / "whole"), 0)[1] == 0
length = time.monotonic() - begun

kills, damaged, failed, leftovers, finished = [], [], [], [], []
run = 0
while len(kills) < 20:
    folder = base / f"killed-{run}"
    pid = child(folder)
    time.sleep(moments.uniform(0, length / 3))
    os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        names = sorted(path.name for path in folder.glob("checkpoints/*"))
        kills.append(max((int(name[5:]) for name in names if name.startswith("step-")), default=0))
        leftovers += [name for name in names if name.startswith(".")]
        damaged += [str(path) for path in folder.glob("checkpoints/step-*") if verify(path)]
    elif os.WEXITSTATUS(status) == 0:
        finished.append(outcome(folder))
        run += 1
    else:
        failed.append(status)
        break
folder = base / f"killed-{run}"
if os.waitpid(child(folder), 0)[1] == 0:
    finished.append(outcome(folder))
    leftovers_at_end = [str(path) for path in folder.rglob(".*")]
print(json.dumps(dict(whole=outcome(base / "whole"), finished=finished, kills=kills, damaged=damaged, failed=failed,
                      leftovers=leftovers, leftovers_at_end=leftovers_at_end)))
"""


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_nothing(tmp_path: Path):
    command = [sys.executable, "-c", KILLER, str(Path(__file__).parent), str(tmp_path), "2"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert not found["failed"], result.stderr
    assert len(found["kills"]) == 20 and len(set(found["kills"])) > 5  # really at many moments
    assert found["damaged"] == [] and found["leftovers_at_end"] == []
    assert found["finished"] and all(outcome == found["whole"] for outcome in found["finished"])
