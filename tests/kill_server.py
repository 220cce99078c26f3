"""A process in which torch is imported once, and which forks a child for each attempt at a command line.

Run as `LD_PRELOAD=<file_operations.so> python kill_server.py FOLDER`: it reads a line of JSON for each subject, and
answers with what was found in one.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from kill_subjects import Subject, needs, subject

from axon_core.cli import main

LIBRARY = ctypes.CDLL(None)
LIBRARY.operations.restype = ctypes.c_long
FULL = 0  # instead of a signal: the disk is full from an operation on
KILLED = -signal.SIGKILL
STRANGE = ("Traceback", "bug in Axon")


class Trials:
    """The attempts at one subject's command line, each ending in a way that is chosen; `faults` lists what is wrong.

    Args:
        base: the folder of everything.
        name: the subject's name.
        seed: what moments are chosen by.
    """

    def __init__(self, base: Path, name: str, seed: int) -> None:
        self.name, self.random = name, random.Random(f"{name} {seed}")
        self.inputs, self.work = base / "inputs", base / name
        self.log = base / f"{name}.log"
        self.subject: Subject = subject(name, self.inputs, self.work)
        self.faults: list[str] = []
        self.kills = self.attempts = 0
        self.elapsed = 0.0
        self.fresh()
        main(self.subject.first)  # here, and not in a child: it imports all that the children use
        self.fresh()
        if (code := self.attempt(self.subject.first)) != 0:
            raise RuntimeError(f"{name}, undisturbed, ends with {code}: {self.log.read_text()}")
        self.whole = self.contents()
        self.total, self.seconds = json.loads((base / "counted").read_text())
        if not (kept := self.inputs / name).exists():
            shutil.copytree(self.work, kept)

    def fresh(self) -> None:
        """Begin with an empty folder."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()

    def moment(self) -> int:
        """Return the number of an operation."""
        return self.random.randint(1, self.total)

    def begin(self, line: list[str], at: int = 0, sent: int = signal.SIGKILL, timer: float = 0.0) -> int:
        """Fork a child that runs a command line, and return its process id."""
        self.attempts += 1
        pid = os.fork()
        if pid:
            return pid
        try:
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1), os.dup2(log, 2)
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, timer)  # which ends the process as SIGKILL does: nobody listens
            LIBRARY.watch_operations(os.fsencode(self.work), at, sent)
            begun = time.monotonic()
            code = main(line)
            counted, seconds = LIBRARY.operations(), time.monotonic() - begun
            sys.stdout.flush(), sys.stderr.flush()
            if not at and not timer:
                (self.inputs.parent / "counted").write_text(json.dumps([counted, seconds]))
            os._exit(code)
        except BaseException as error:
            os.write(2, f"Traceback: {error!r}".encode())
            os._exit(99)

    def attempt(self, line: list[str], *at: int, timer: float = 0.0) -> int:
        """Run a command line to its end, and return the exit code, or the signal's number with a minus."""
        return self.ended(self.begin(line, *at, timer=timer))

    def ended(self, pid: int) -> int:
        """Wait for a child, and return how it ended; what a user must never read is a fault."""
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        said = self.log.read_text(errors="replace")
        if any(word in said for word in STRANGE):
            self.faults.append(f"{self.name} says: {said[-1500:]}")
        self.kills += code in (KILLED, -signal.SIGALRM)
        return code

    def contents(self, folder: Path | None = None) -> dict[str, str]:
        """Return the checksums of all files, folders with an empty one, but for files that hold times."""
        folder = folder or self.work
        found = {}
        for path in sorted(folder.rglob("*")):
            data = b"" if path.is_dir() or path.name in self.subject.timed else path.read_bytes()
            found[str(path.relative_to(folder))] = hashlib.sha256(data).hexdigest()
        return found

    def finish(self, what: str) -> None:
        """Run the command again, undisturbed, and compare what there is in the end."""
        code = self.attempt(self.subject.again)
        said = self.log.read_text(errors="replace")[-600:]
        if code not in ((0, 2) if "nothing is overwritten" in said else (0,)):  # it was done when it was killed
            self.faults.append(f"{self.name}, {what}, then run again ends with {code}: {said}")
        elif changed := self.contents().items() ^ self.whole.items():
            self.faults.append(f"{self.name}, {what}, ends otherwise: {sorted({name for name, _ in changed})}")

    def expect(self, what: str, code: int, allowed: tuple[int, ...]) -> None:
        """Note a fault where a command ended in another way."""
        if code not in allowed:
            said = self.log.read_text(errors="replace")[-600:]
            self.faults.append(f"{self.name}, {what}, ends with {code}: {said}")


def killed(trials: Trials) -> None:
    """Kill a first run and then the second one before an operation, or in the middle of a write."""
    first, again = trials.moment(), trials.random.randint(1, max(1, min(20, trials.total)))
    what = f"killed at operation {first} and at {again} of {trials.total}"
    trials.expect(what, trials.attempt(trials.subject.first, first, signal.SIGKILL), (KILLED,))
    trials.expect(what, trials.attempt(trials.subject.again, again, signal.SIGKILL), (KILLED, 0, 2))
    trials.finish(what)


def timed(trials: Trials) -> None:
    """Kill a first run and a second one at moments that a clock chooses."""
    moments = [trials.random.uniform(0.001, max(trials.seconds, 0.01)) for _ in range(2)]
    what = f"killed after {moments} of {trials.seconds:.2f} s"
    ends = (-signal.SIGALRM, 0)
    trials.expect(what, trials.attempt(trials.subject.first, timer=moments[0]), ends)
    trials.expect(what, trials.attempt(trials.subject.again, timer=moments[1]), (*ends, 2))
    trials.finish(what)


def full(trials: Trials) -> None:
    """Let the disk be full from an operation on: a message and code 1, or 0 where nothing of weight was left to do."""
    at = trials.moment()
    what = f"full disk from operation {at} of {trials.total}"
    code = trials.attempt(trials.subject.first, at, FULL)
    trials.expect(what, code, (0, 1))
    if code and "No space left" not in trials.log.read_text():
        trials.faults.append(f"{trials.name}, {what}, says: {trials.log.read_text()[-600:]}")
    trials.finish(what)


def hung_up(trials: Trials) -> None:
    """Close the terminal at an operation: a training saves, anything else may end at once."""
    at = trials.moment()
    what = f"SIGHUP at operation {at} of {trials.total}"
    code = trials.attempt(trials.subject.first, at, signal.SIGHUP)
    trials.expect(what, code, (0, 1, 130, -signal.SIGHUP))
    trials.finish(what)


def twice(trials: Trials) -> None:
    """Start the command a second time while the first stands still at an operation: one at most is refused."""
    at = trials.moment()
    what = f"a second writer at operation {at} of {trials.total}"
    pid = trials.begin(trials.subject.first, at, signal.SIGSTOP)
    if os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1]):
        second = trials.attempt(trials.subject.again)
        os.kill(pid, signal.SIGCONT)
        codes = {trials.ended(pid), second}
        if 0 not in codes or not codes <= {0, 2}:
            trials.faults.append(f"{trials.name}, {what}: {codes}, {trials.log.read_text()[-600:]}")
    trials.finish(what)


def moved(trials: Trials) -> None:
    """Move the folder while the command stands still at an operation, and go on where it is then."""
    if not trials.subject.moves:
        return hung_up(trials)
    at, out = trials.moment(), trials.work / "out"
    what = f"moved at operation {at} of {trials.total}"
    pid = trials.begin(trials.subject.first, at, signal.SIGSTOP)
    if os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1]):
        there = out.exists() and out.rename(trials.inputs / "moved")
        os.kill(pid, signal.SIGCONT)
        trials.expect(what, trials.ended(pid), (0, 1, 2))
        if there:
            if out.exists():
                trials.faults.append(f"{trials.name}, {what}: a new folder holds {trials.contents(out).keys()}")
                shutil.rmtree(out)
            (trials.inputs / "moved").rename(out)
    trials.finish(what)


SCENARIOS: dict[str, Callable[[Trials], None]] = {
    each.__name__: each for each in (killed, timed, full, hung_up, twice, moved)
}


def answer(base: Path, known: dict[str, Trials], asked: dict[str, Any]) -> dict[str, Any]:
    """Do what a line asks for: `{"subject", "scenarios", "seed"}`."""
    name = asked["subject"]
    begun = time.monotonic()
    for each in filter(None, (needs(name), name)):
        if each not in known:
            known[each] = Trials(base, each, asked["seed"])
    trials = known[name]
    for scenario in asked["scenarios"]:
        trials.fresh()
        SCENARIOS[scenario](trials)
    trials.elapsed += time.monotonic() - begun
    facts = {"kills": trials.kills, "attempts": trials.attempts, "operations": trials.total}
    return {**facts, "faults": trials.faults, "whole": sorted(trials.whole), "seconds": trials.elapsed}


def serve() -> None:
    """Answer lines until there are no more."""
    base = Path(sys.argv[1])
    (base / "inputs").mkdir(exist_ok=True)
    torch.set_num_threads(1)
    sys.modules["matplotlib.figure"] = None  # type: ignore[assignment]  pictures take most of the time, and hold no result
    out = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what commands say in this process
    logging.getLogger("axon").handlers.clear()
    known: dict[str, Trials] = {}
    for line in sys.stdin:
        os.write(out, json.dumps(answer(base, known, json.loads(line))).encode() + b"\n")


if __name__ == "__main__":
    serve()
