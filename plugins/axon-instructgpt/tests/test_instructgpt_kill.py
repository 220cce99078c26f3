"""A pipeline that is killed at any point goes on by the same command, and ends with what it would have ended with."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TINY = Path(__file__).with_name("tiny.toml").read_text(encoding="utf-8")
MORE = """
[sft]
model = { init = "@pretrain" }
data = { path = "@excerpts/train.jsonl" }
trainer = { type = "sft", steps = 3, batch_size = 2, save_every = 2 }
[dpo]
model = { init = "@sft" }
data = { path = "@comparisons/comparisons.jsonl", held_out = 0.3 }
trainer = { type = "dpo", steps = 4, batch_size = 2, save_every = 2 }
"""
PTX = 'auxiliary = { type = "pretraining", path = "TEXT", gamma = 0.1, length = 4, per_response = 1 }'

# One process runs the pipeline undisturbed, which imports all there is, and forks a child for each further attempt. All
# of these but the last are killed, each further on than the one before.
KILLER = """
import hashlib, json, os, signal, sys
from pathlib import Path

import torch
torch.set_num_threads(1)
sys.modules["matplotlib.figure"] = None  # pictures take most of the time, and hold no result
from axon_core.cli import main
from axon_core.training.loop import Fit
from axon_core.training.updates import Updater
from axon_core.training.run_folder import RunFolder
from axon_instructgpt import comparisons, excerpts, pipeline, report
from axon_instructgpt.pipeline import _Record
from axon_ppo import PPOTrainer, rollout

def noted(stage, done):
    return _Record, "note", lambda record, name, table, seconds: name == stage and (seconds is not None) == done, 1

def stepping(stage, step):
    return Fit, "_step", lambda fit: fit.run.path.name == stage and fit.state.step == step, 1

POINTS = {
    "before there is a record": (os, "replace", lambda draft, file: Path(file).name == "align.json", 1),
    "in the first stage": stepping("pretrain", 3),
    "between two stages": noted("excerpts", False),
    "after a stage, before it is noted": noted("excerpts", True),
    "between two files of a stage": (comparisons, "write_lines", lambda file, lines: True, 2),
    "before the reward model's first checkpoint": stepping("reward", 1),
    "after the reward model's second checkpoint": stepping("reward", 5),
    "within ppo's first checkpoint": (PPOTrainer, "export", lambda trainer, folder: True, 1),
    "within a roll-out of ppo": (rollout, "action_values", lambda *found: True, 2),
    "within a step of ppo": (
        Updater, "update", lambda made, *given: isinstance(made._trainer, PPOTrainer) and made._state.step == 3, 3
    ),
    "before ppo's model is published": (RunFolder, "publish", lambda run: run.path.name == "ppo", 1),
    "in the fine-tuning": stepping("sft", 1),
    "before the reference's log-probabilities are saved": stepping("dpo", 1),
    "after dpo's first checkpoint": stepping("dpo", 3),
    "between two files of the report": (report, "page", lambda facts: True, 1),
    "after the report, before it is noted": noted("report", True),
}

def kill_at(owner, name, when, nth):
    real, calls = getattr(owner, name), []
    def watched(*args, **options):
        calls.extend([name] * bool(when(*args, **options)))
        if len(calls) == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)
    setattr(owner, name, watched)

def align(name):
    return main(["align", sys.argv[1], "--out", str(base / name)])

def attempt(point=None):
    pid = os.fork()
    if pid == 0:
        if point:
            kill_at(*POINTS[point])
        os._exit(align("killed"))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def contents(folder):
    timed = ("run.json", "align.json")  # which say when and how long
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name not in timed]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

base = Path(sys.argv[2])
whole, killed, last = align("whole"), {point: attempt(point) for point in POINTS}, attempt()
print(json.dumps(dict(whole=whole, killed=killed, last=last,
                      contents=[contents(base / name) for name in ("whole", "killed")])))
"""


@pytest.mark.slow
def test_a_pipeline_that_is_killed_again_and_again_ends_with_the_same_bits(tmp_path):
    letters = torch.randint(3, (900,), generator=torch.Generator().manual_seed(0)).tolist()
    (tmp_path / "text.txt").write_text("".join("ab "[i] for i in letters))
    before, after = TINY.split("[report]")
    stages = before.replace("[ppo]\nmodel = { ", f"[ppo]\nmodel = {{ {PTX}, ") + MORE + "[report]" + after
    assert PTX in stages
    (tmp_path / "tiny.toml").write_text(stages.replace("TEXT", str(tmp_path / "text.txt")))
    command = [sys.executable, "-c", KILLER, str(tmp_path / "tiny.toml"), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["whole"] == 0 and found["last"] == 0, result.stderr
    assert set(found["killed"].values()) == {-9}, found["killed"]
    whole, killed = found["contents"]
    assert whole == killed
    assert {"ppo/model/model.safetensors", "dpo/model/model.safetensors", "report/report.json"} <= whole.keys()
    assert not [file for file in whole if "unfinished" in file or "/." in file]
