"""What processes tell one another beside their collectives: the step each is at, why it ends, and what a restart needs.

They tell it in the store through which torchrun let them find each other, which outlives each of them.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from torch._C._distributed_c10d import PrefixStore, Store

from axon_core.errors import AxonError, explained
from axon_core.json_text import to_json
from axon_core.processes import PeerError, is_lost

__all__ = ["Ending", "Peers"]

_PATIENCE = 5.0  # seconds for the others to notice that one has ended, and to say why they do
_INTERRUPTED = 130


@dataclass(frozen=True)
class Ending:
    """Why a process ends.

    Attributes:
        own: for a reason of its own, and not because another process ended.
        final: the reason stays if torchrun starts the processes again.
        code: its exit code.
        message: what it would print.
        notes: what it would print below.
    """

    own: bool
    final: bool
    code: int
    message: str
    notes: Sequence[str]

    @classmethod
    def of(cls, error: BaseException) -> Ending:
        """Return why a process ends that raises this error."""
        notes = list(getattr(error, "__notes__", []))
        if isinstance(error, KeyboardInterrupt):
            return cls(False, True, _INTERRUPTED, "interrupted", notes)
        if isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
            return cls(True, True, code, str(error), notes)
        own = not (isinstance(error, PeerError) or is_lost(error))
        message = explained(error) if isinstance(error, Exception) else repr(error)
        return cls(own, isinstance(error, AxonError), getattr(error, "exit_code", 1), message, notes)


class Peers:
    """The other processes of a training, as this one knows them.

    Args:
        store: where they met.
        rank: this process's number.
        world: how many they are.
        meeting: tells this group apart from those before: how often torchrun has started the processes again, and how
            often they have joined since.
    """

    def __init__(self, store: Store, rank: int, world: int, meeting: str) -> None:
        self._rank, self._world = rank, world
        self._has_store = True
        self._lasting = PrefixStore("axon", store)
        self._notes = PrefixStore(f"axon/{meeting}", store)
        self._notes.set(f"process/{rank}", to_json([platform.node(), os.getppid(), os.getpid()]))

    def note_step(self, step: int) -> None:
        """Let the others know how many steps this process has done; it takes some ten microseconds."""
        if self._has_store:
            try:
                self._notes.set(f"step/{self._rank}", str(step))
            except RuntimeError:  # each more would print the C++ stack of its failure
                self._has_store = False

    def remember(self, name: str, value: str) -> None:
        """Keep a text for processes that torchrun starts again."""
        with suppress(RuntimeError):
            self._lasting.set(name, value)

    def recall(self, name: str) -> str | None:
        """Return what was kept under a name, now or before torchrun started the processes again."""
        return _text(self._lasting, name)

    def is_told(self) -> bool:
        """Return whether another process has told why all end."""
        with suppress(RuntimeError):
            return self._notes.check(["told"])
        return False

    def end(self, error: BaseException, disconnect: Callable[[], None]) -> BaseException:
        """Return what to raise instead of an error, so that all processes end with one message and one exit code.

        One process returns the first cause; there it is told. The others return a `PeerError` that is told already.

        Args:
            error: what this process raises.
            disconnect: makes the collectives fail in which other processes wait for this one.
        """
        mine = Ending.of(error)
        if (final := self.recall("final")) is not None:
            return _told("the training has ended", int(final))
        with suppress(RuntimeError):
            self._notes.set(f"ended/{self._rank}", to_json(asdict(mine)))
            if mine.own:
                self._notes.compare_set("first", "", str(self._rank))
            self._notes.add("ended", 1)
        disconnect()
        try:
            gone = self._wait()
            endings = {rank: found for rank in range(self._world) if (found := self._ending(rank))}
            tells = self._rank == min(endings) and self._notes.add("told", 1) == 1
        except (RuntimeError, ValueError):  # the store is gone, with torchrun or the machine that had it
            if self._rank and mine.code == _INTERRUPTED:  # which comes to all
                return _told(mine.message, mine.code)
            return error if mine.own else _peer_error(f"another process ended: {mine.message}", mine)
        number, cause = self._cause(endings, gone, str(error))
        if not tells:
            self._let_tell(min(endings))
            return _told(cause.message, cause.code)
        if cause.final:
            self.remember("final", str(cause.code))
        if all(endings.get(rank) == cause for rank in range(self._world)):
            return error
        if number == self._rank:
            if isinstance(error, Exception):
                error.add_note(f"This was in process {number} of {self._world}.")
            return error
        if number is None:
            return KeyboardInterrupt() if cause.code == _INTERRUPTED else _peer_error(cause.message, cause)
        return _peer_error(f"process {number}: {cause.message}", cause)

    def _cause(self, endings: dict[int, Ending], gone: list[int], said: str) -> tuple[int | None, Ending]:
        """Return the first cause and the process that has it, if it is one that said so."""
        own = [rank for rank, ending in endings.items() if ending.own]
        if own:
            first = int(_text(self._notes, "first") or own[0])
            # An interruption comes to all; then the first process speaks.
            number = own[0] if endings[first].code == _INTERRUPTED else first
            return number, endings[number]
        lost = [rank for rank in range(self._world) if rank not in endings]
        if not lost:
            interrupted = next((ending for ending in endings.values() if ending.code == _INTERRUPTED), None)
            return None, interrupted or endings[self._rank]
        notes = endings[self._rank].notes if self._rank in endings else ()
        return None, Ending(True, False, 1, self._describe(lost, gone, said), notes)

    def _describe(self, lost: list[int], gone: list[int], said: str) -> str:
        who = f"process {lost[0]}" if len(lost) == 1 else f"processes {', '.join(map(str, lost))}"
        if not any(self._notes.check([f"process/{rank}"]) for rank in lost):
            return f"{who} did not start in time (trainer.parallel.timeout)"
        steps = sorted({self._step(rank) for rank in lost})
        when = " or ".join(f"after step {step}" if step else "before the first step was done" for step in steps)
        if set(lost) <= set(gone):
            return f"{who} ended without a message, {when}: killed, or out of memory"
        if "imed out" in said:
            return (
                f"{who} did not answer in time (trainer.parallel.timeout), {when}; process {self._rank} waited after "
                f"step {self._step(self._rank)}"
            )
        return f"the connection to {who} is lost, {when}"

    def _wait(self) -> list[int]:
        """Wait until all have ended, but not long; return those on this machine that did so without a word."""
        until = time.monotonic() + _PATIENCE
        mine = [platform.node(), os.getppid()]
        near: dict[int, int] = {}
        for rank in range(self._world):
            *place, process = json.loads(_text(self._notes, f"process/{rank}") or "[null]")
            if place == mine:
                near[rank] = process
        while True:
            gone = [rank for rank, process in near.items() if _is_gone(process)]
            gone = [rank for rank in gone if not self._notes.check([f"ended/{rank}"])]
            if self._notes.add("ended", 0) + len(gone) >= self._world or time.monotonic() > until:
                return gone
            time.sleep(0.02)

    def _let_tell(self, teller: int) -> None:
        """Wait until another process has told the cause and ended: torchrun ends all as soon as one has."""
        *_, process = json.loads(_text(self._notes, f"process/{teller}") or "[0]")
        until = time.monotonic() + _PATIENCE
        while time.monotonic() < until and not _is_gone(process):
            time.sleep(0.02)

    def _ending(self, rank: int) -> Ending | None:
        said = _text(self._notes, f"ended/{rank}")
        return None if said is None else Ending(**json.loads(said))

    def _step(self, rank: int) -> int:
        return int(_text(self._notes, f"step/{rank}") or 0)


def _text(store: Store, name: str) -> str | None:
    with suppress(RuntimeError):
        if store.check([name]):
            return store.get(name).decode()
    return None


def _peer_error(message: str, cause: Ending) -> PeerError:
    error = PeerError(message)
    error.exit_code = cause.code
    for note in cause.notes:
        error.add_note(note)
    return error


def _told(message: str, code: int) -> PeerError:
    error = PeerError(message)
    error.exit_code, error.told = code, True
    return error


def _is_gone(process: int) -> bool:
    """Return whether a process of this machine has ended; torchrun may not have taken notice yet."""
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except ProcessLookupError:
        return True
    except OSError:
        return False
