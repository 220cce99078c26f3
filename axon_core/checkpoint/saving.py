"""One checkpoint on its way to the disk: all processes write their parts into a draft, which the first commits.

In the foreground the processes tell one another by collective operations. In the background a thread of each writes
what was copied, and renames an empty file in the draft when it has; the thread of the first waits for these. A rename
needs no space on a full disk, and no collective operation meets those of the training.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread, get_native_id
from typing import Any

from axon_core.checkpoint.atomic import TREE, writing
from axon_core.checkpoint.exports import Later
from axon_core.checkpoint.manifest import new_folder
from axon_core.checkpoint.pieces import owned, piece_of
from axon_core.checkpoint.shard_names import shard_name
from axon_core.checkpoint.stored import stored_tensors, write_pieces
from axon_core.checkpoint.trees import split_tree
from axon_core.errors import CheckpointError
from axon_core.processes import first_does, from_first, gather, is_first, rank, together, world

__all__ = ["INTERIM", "LAST_SECONDS", "Saving"]

INTERIM = "interim"
"""An empty file that marks a checkpoint of a training that was interrupted."""

LAST_SECONDS = 20.0
"""How long the first process waits for the parts of the others when the training has failed: one may be lost."""

_MODEL = "model"
_WRITING, _WRITTEN, _FAILED = ".writing-", ".written-", ".failed-"
_PATIENCE = 1800.0  # seconds that the first process waits for the parts of the others
_PAUSE = 0.05
_NICENESS = 15  # of the writing in the background


class Saving:
    """A checkpoint being written. All processes make it, and call its methods, alike.

    Args:
        target: its folder.
        state: the training state.
        interim: whether only a training that was interrupted needs it.
        done: what the first process calls when the checkpoint is complete.

    Raises:
        ContractError: the state could not be read again, or the processes have different ones.
    """

    def __init__(self, target: Path, state: Mapping[str, Any], *, interim: bool, done: Callable[[], None]) -> None:
        self._target, self._interim, self._done = target, interim, done
        self._text, self._tensors = split_tree(state)
        self._mine = owned({name: piece_of(tensor) for name, tensor in self._tensors.items()})
        self._rank, self._world = rank(), world()  # the thread may outlive the group
        self._later: Later | None = None
        self._sums: dict[str, str] = {}
        self._draft = target
        self._thread: Thread | None = None
        self._error: BaseException | None = None
        self._late_error: BaseException | None = None
        self._patience = _PATIENCE

    def complete(self, export: Callable[[Path], None]) -> None:
        """Write it now.

        Raises:
            CheckpointError: it could not be written.
            PeerError: that happened in another process.
        """
        with ExitStack() as draft:
            self._open(draft)
            for sums in gather(together(self._write)):
                self._sums.update(sums)
            together(partial(self._export, export, later=self._world > 1))
            first_does(self._write_exports)
            together(draft.close)
        first_does(self._done)

    def begin(self, export: Callable[[Path], None]) -> None:
        """Copy the state and begin to write the copy in the background.

        Raises:
            CheckpointError: the draft could not be made.
            PeerError: that happened in another process.
        """
        with ExitStack() as draft:
            self._open(draft)
            together(self._stage)
            together(partial(self._export, export, later=True))
            self._tensors = {}
            kept = draft.pop_all()
        self._thread = Thread(target=self._finish, args=(kept,), name="checkpoint", daemon=True)
        self._thread.start()

    def has_ended(self) -> bool:
        """Whether the thread knows how it ended: the first when it is complete, any process when it has failed."""
        ended = self._thread is not None and not self._thread.is_alive()
        return ended and (self._rank == 0 or self._error is not None)

    def wait(self) -> Path:
        """Wait for the thread, and return the checkpoint.

        Raises:
            CheckpointError: it could not be written.
            PeerError: that happened in another process.
        """
        if self._thread is not None:
            self._thread.join()
        together(partial(_raise, self._error))
        together(partial(_raise, self._late_error))
        return self._target

    def give_up(self) -> None:
        """Give the thread some seconds; what it has not completed by then, the next training in the folder removes."""
        self._patience = LAST_SECONDS
        if self._thread is not None:
            self._thread.join(2 * LAST_SECONDS)

    def _open(self, draft: ExitStack) -> None:
        """Make the draft, which ends as the target when `draft` is closed."""

        def make() -> str:
            if not is_first():
                return ""
            folder = draft.enter_context(new_folder(self._target, self._sums))
            (folder / _MODEL).mkdir()
            if self._interim:
                (folder / INTERIM).touch()
            return str(folder)

        self._draft = Path(from_first(together(make)))

    def _write(self) -> dict[str, str]:
        """Write this process's part; return the checksums of its files."""
        with writing(self._target):
            name, checksum = write_pieces(self._draft, self._mine, self._rank, self._world)
            sums = {name: checksum}
            if self._rank == 0:
                text = self._text.encode()
                (self._draft / TREE).write_bytes(text)
                sums[TREE] = hashlib.sha256(text).hexdigest()
        return sums

    def _export(self, export: Callable[[Path], None], *, later: bool) -> None:
        with writing(self._target), ExitStack() as stack:
            folder = self._draft / _MODEL if is_first() else Path(stack.enter_context(TemporaryDirectory()))
            if later:
                self._later = Later(self._tensors)
                stack.enter_context(self._later.active())
            export(folder)

    def _write_exports(self) -> None:
        if self._later is not None:
            with writing(self._target):
                self._later.write(stored_tensors(self._draft))

    def _stage(self) -> None:
        """Copy what is to be written, and leave the empty file that says that it is being written."""
        self._mine = {
            name: replace(piece, local=piece.local.to("cpu", copy=True)) for name, piece in self._mine.items()
        }
        with writing(self._target):
            (self._draft / f"{_WRITING}{self._rank}").touch()

    def _finish(self, draft: ExitStack) -> None:
        """Do the rest, in the thread, in the time that training leaves."""
        _give_way()
        try:
            self._sums.update(self._write())
            self._mine = {}
            self._report(f"{_WRITTEN}{self._rank}-{self._sums[shard_name(self._rank, self._world)]}")
        except BaseException as error:
            self._error = error
            with suppress(OSError):
                self._report(f"{_FAILED}{self._rank}")
        if self._rank:
            return
        try:
            with draft:
                self._gather_reports()
                self._write_exports()
                draft.close()
            self._done()
        except BaseException as error:
            self._late_error = error

    def _report(self, name: str) -> None:
        (self._draft / f"{_WRITING}{self._rank}").rename(self._draft / name)

    def _gather_reports(self) -> None:
        """Wait until every process has written its part, and take the checksums that they report.

        Raises:
            CheckpointError: one has failed, or was lost.
        """
        began = time.monotonic()
        while len(reports := [*self._draft.glob(f"{_WRITTEN}*"), *self._draft.glob(f"{_FAILED}*")]) < self._world:
            if time.monotonic() - began > self._patience:
                late = sorted(file.name.removeprefix(_WRITING) for file in self._draft.glob(f"{_WRITING}*"))
                raise CheckpointError(
                    f"{self._target} was not written: process {late[0] if late else '?'} has not written its part "
                    f"within {self._patience:g} seconds. Earlier saved files are intact."
                )
            time.sleep(_PAUSE)
        for report in reports:
            if report.name.startswith(_FAILED):
                number = report.name.removeprefix(_FAILED)
                raise CheckpointError(f"{self._target} was not written: process {number} could not write its part")
            number, _, checksum = report.name.removeprefix(_WRITTEN).partition("-")
            self._sums[shard_name(int(number), self._world)] = checksum
            report.unlink()


def _give_way() -> None:
    """Lower this thread's priority, where threads have their own, so that no process waits for one that writes."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, get_native_id(), _NICENESS)


def _raise(error: BaseException | None) -> None:
    if error is not None:
        raise error
