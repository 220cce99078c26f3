"""Killing a training before any of its file operations, at first and as it resumes, ends at the same bytes.

`AXON_KILLS=200` kills that often; the suite kills less often.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

KILLS = int(os.environ.get("AXON_KILLS", "24"))

# One process imports torch, and forks a child for each attempt. A child counts the file operations within its folder by
# Python's audit events, and is killed before the k-th, for k spread over all of them.
KILLER = """
import hashlib, json, os, signal, sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from toy_trainer import Toy
from axon_core.loop import fit

sys.modules["matplotlib.figure"] = None
OPTIONS = dict(steps=6, save_every=2, eval_every=3, keep=1, dropout=0.3, ema=0.9)
WRITES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod"}

def attempt(folder, kill_at=None):
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    count = [0]
    def watch(event, given):
        writes = event in WRITES or (event == "open" and given[2] and given[2] & (os.O_WRONLY | os.O_RDWR))
        if writes and str(folder) in str(given[0]):
            count[0] += 1
            if count[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(watch)
    try:
        fit(Toy.make(**OPTIONS), folder, resume=True)
        (base / "count").write_text(str(count[0]))
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(1)

def contents(folder):
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != "run.json"]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

base, kills = Path(sys.argv[2]), int(sys.argv[3])
fit(Toy.make(**OPTIONS))
codes, different, done = [attempt(base / "whole")], [], 0
total, whole = int((base / "count").read_text()), contents(base / "whole")
number = 0
while done < kills:
    folder = base / f"killed-{number}"
    first = 1 + number * total * 2 // kills % total
    for kill_at in (first, 1 + number * 7 % 12):  # the first run, then the resumed one
        code = attempt(folder, kill_at)
        done += code == -signal.SIGKILL
        codes += [code] if code not in (0, -signal.SIGKILL) else []
    codes.append(attempt(folder))
    if contents(folder) != whole:
        different.append((first, sorted(contents(folder).items() ^ whole.items())))
    number += 1
print(json.dumps(dict(codes=codes, different=different, kills=done, operations=total, whole=sorted(whole))))
"""


def test_a_kill_before_any_file_operation_changes_no_byte(tmp_path: Path):
    command = [sys.executable, "-c", KILLER, str(Path(__file__).parent), str(tmp_path), str(KILLS)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert set(found["codes"]) == {0}, result.stderr
    assert found["different"] == []
    assert found["kills"] >= KILLS and found["operations"] > 50
    assert {"model/weights.pt", "metrics.jsonl", "checkpoints/step-6/manifest.json"} <= set(found["whole"])
    print(found["kills"], "kills over", found["operations"], "operations")
