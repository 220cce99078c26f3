"""Plays torchrun without its imports: forks the processes of a training from one in which torch is imported.

It reads one request a line, {"args", "world", "act", "restarts", …}, and answers with what became of the processes.
Like torchrun it holds the store, sets the environment, ends all as soon as one fails, and starts all again.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import axon_core.training.loop as loop
import axon_core.training.parallel.alike as alike
from axon_core.cli import main
from axon_core.errors import DataError

RECIPE = """
[model]
type = "xllama"
context = 16
dim = 16
n_layers = 1
n_heads = 2
[trainer]
type = "causal_lm"
device = "cpu"
steps = 12
batch_size = 4
save_every = 4
eval_every = 12
[data]
path = "text.txt"
tokenizer = "char"
"""
GRACE = 30.0  # seconds that torchrun lets a process save


def kill(number: int) -> Callable[[], None]:
    """Return what sends a signal to the process itself."""
    return lambda: os.kill(os.getpid(), number)


def fail() -> None:
    raise DataError("the disk of this machine is on fire")


def crash() -> None:
    raise ZeroDivisionError("a mistake in a plugin")


def sleep() -> None:
    time.sleep(600)


def move() -> None:
    """Move the run folder away."""
    os.rename("out", "moved")


def fill() -> None:
    """Let no file grow: the disk is full."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))


def other_version() -> None:
    """Have another version of a plugin than the others."""
    versions = alike._versions
    alike._versions = lambda trainer: versions(trainer) | {"the version of axon-xllama": "0.0.7"}


ACTS: dict[str, Callable[[], None]] = {
    "killed": kill(signal.SIGKILL),
    "terminated": kill(signal.SIGTERM),
    "interrupted": kill(signal.SIGINT),
    "hung_up": kill(signal.SIGHUP),
    "fails": fail,
    "crashes": crash,
    "sleeps": sleep,
    "moves": move,
    "fills": fill,
    "other_version": other_version,
}


def worker(request: dict[str, Any], rank: int, attempt: int, port: int, logs: Path) -> None:
    """Be one of the processes; does not return."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(logs / f"{rank}.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.setsid()
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(request["world"]),
        "LOCAL_WORLD_SIZE": str(request["world"]),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_RESTART_COUNT": str(attempt),
        **request.get("environments", {}).get(str(rank), {}),
    }
    args = request["args"] + request.get("own_args", {}).get(str(rank), [])
    if act := request.get("acts", {}).get(str(rank)):
        _act_at(act["step"], ACTS[act["what"]], act.get("attempt", 0) == attempt, act.get("times", 1), act.get("late"))
    code = 1
    try:
        os.chdir(request["folder"])
        sys.stdout = sys.__stdout__
        sys.argv = ["axon", *args]
        code = main(args)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except KeyboardInterrupt:
        code = 130
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _act_at(step: int, act: Callable[[], None], now: bool, times: int, late: bool | None = None) -> None:
    """Act at the beginning of a step; or if `late`, as soon as all have agreed after it on whether they end."""
    if step < 0:  # before all
        return act()
    note, agree = loop.note_step, loop.agree

    def note_and_act(done: int) -> None:
        note(done)
        if now and done == step:
            if late:
                loop.agree = agree_and_act
            else:
                act_often()

    def agree_and_act(value: int) -> int:
        loop.agree = agree
        agreed = agree(value)
        act_often()
        return agreed

    def act_often() -> None:
        for _ in range(times):
            act()

    loop.note_step = note_and_act  # called at the beginning of each step


class Group:
    """The processes of one request.

    Args:
        request: what to do.
        logs: a folder for what they print.
    """

    def __init__(self, request: dict[str, Any], logs: Path) -> None:
        self.request, self.logs = request, logs
        self.store = dist.TCPStore("localhost", 0, None, True, timedelta(seconds=30), wait_for_workers=False)
        self.random = random.Random(request.get("seed", 0))
        self.kills = request.get("kills", 0)
        self.killed = 0
        self.forced: list[int] = []

    def run(self) -> dict[str, Any]:
        """Start all, and again as often as asked; return what became of them."""
        begun, attempt = time.monotonic(), 0
        while True:
            codes = self._attempt(attempt)
            if not any(codes) or attempt >= self.request.get("restarts", 0):
                break
            attempt += 1
        return {
            "codes": codes,
            "attempts": attempt + 1,
            "seconds": time.monotonic() - begun,
            "forced": self.forced,
            "killed": self.killed,
            **{name: [self._said(rank, name) for rank in range(self.request["world"])] for name in ("out", "err")},
        }

    def _said(self, rank: int, name: str) -> str:
        log = self.logs / f"{rank}.{name}"
        return log.read_text() if log.exists() else ""  # one that was ended before it began said nothing

    def _attempt(self, attempt: int) -> list[int]:
        pids = []
        for rank in range(self.request["world"]):
            if (pid := os.fork()) == 0:
                worker(self.request, rank, attempt, self.store.port, self.logs)
            pids.append(pid)
        codes: dict[int, int] = {}
        until, told = float("inf"), False
        # Moments from the start of the processes to the end of a training that is not disturbed.
        kill_at = time.monotonic() + self.random.uniform(0.0, self.request.get("span", 0.0))
        signalled = time.monotonic() + self.request["signal"][1] if "signal" in self.request else float("inf")
        while len(codes) < len(pids):
            for pid in set(pids) - codes.keys():
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
            now = time.monotonic()
            if self.killed < self.kills and now > kill_at and not told and len(codes) < len(pids):
                os.kill(self.random.choice([pid for pid in pids if pid not in codes]), signal.SIGKILL)
                self.killed, kill_at = self.killed + 1, float("inf")
            if now > signalled:
                self._send(pids, codes, self.request["signal"][0])
                signalled = float("inf")
            if any(codes.values()) and not told:
                self._send(pids, codes, signal.SIGTERM)
                told, until = True, now + GRACE
            if now > until:
                self.forced += [pids.index(pid) for pid in pids if pid not in codes]
                self._send(pids, codes, signal.SIGKILL)
                until = float("inf")
            time.sleep(0.02)
        return [codes[pid] for pid in pids]

    def _send(self, pids: Sequence[int], codes: dict[int, int], number: int) -> None:
        for pid in pids:
            if pid not in codes:
                os.kill(pid, number)


def serve(base: Path) -> None:
    """Answer requests until there are no more."""
    torch.set_num_threads(1)
    answers, sys.stdout = sys.stdout, sys.stderr
    os.chdir(base)
    if main(["train", "tiny.toml", "--out", "first"]):  # here, and not in a child: it imports all that they use
        raise RuntimeError("the training fails by itself")
    for number, line in enumerate(sys.stdin):
        logs = base / f"logs-{number}"
        logs.mkdir()
        print(json.dumps(Group(json.loads(line), logs).run()), file=answers, flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
