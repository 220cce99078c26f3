"""One writer at a time: a lock for each run folder and each output, which the kernel releases when its holder dies."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import platform
import shlex
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from axon_core.documents import parse_json
from axon_core.errors import UsageError
from axon_core.json_text import to_json

__all__ = ["Lock", "check_unlocked", "is_lock", "lock_folder", "lock_output", "pinned", "unpinned"]

_log = logging.getLogger("axon")

_LOCK = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)  # a file system without them says one of these

_held: set[int] = set()  # what a forked child must close: it would keep the lock when its parent dies


def _forget() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)


class Lock:
    """A lock that this process holds, made by `lock_folder` and `lock_output`.

    Args:
        file: the file that is locked.
        descriptor: the open file.
    """

    def __init__(self, file: Path, descriptor: int) -> None:
        self._file, self._descriptor = file, descriptor

    def is_lost(self) -> bool:
        """Whether the lock's folder has been moved or deleted since it was locked."""
        return not _is_at(self._file, self._descriptor)


@contextmanager
def lock_folder(folder: Path) -> Generator[Lock]:
    """Within the block, keep every other process from locking a folder that exists.

    Raises:
        UsageError: another process holds it; the message names that process.
        OSError: the folder is missing or cannot be written to.
    """
    with _locked(folder / _LOCK, folder) as lock:
        yield lock


@contextmanager
def lock_output(target: Path) -> Generator[Lock]:
    """Within the block, keep every other process from locking a file or folder that is to be made.

    Raises:
        UsageError: another process holds it; the message names that process.
        OSError: the folder around it is missing or cannot be written to.
    """
    with _locked(target.parent / f".{target.name}{_LOCK}", target) as lock:
        yield lock


def check_unlocked(folder: Path) -> None:
    """Check, before long work, that no other process holds a folder, which may be missing.

    Raises:
        UsageError: one does; the message names it.
    """
    with suppress(OSError), _locked(folder / _LOCK, folder, create=False):
        pass


def is_lock(name: str) -> bool:
    """Return whether a file of this name is the lock of its folder (`lock_folder`), or of a file beside it."""
    return name.startswith(".") and name.endswith(_LOCK)


@contextmanager
def pinned(folder: Path) -> Generator[bool]:
    """Within the block, keep a writer that calls `unpinned` from removing a folder that is being read.

    Yields whether the folder is there; if it is not, nothing is protected.
    """
    with _shared(folder, fcntl.LOCK_SH) as there:
        yield there


@contextmanager
def unpinned(folder: Path) -> Generator[bool]:
    """Yield whether nobody is reading a folder, and keep it that way within the block."""
    with _shared(folder, fcntl.LOCK_EX) as alone:
        yield alone


@contextmanager
def _shared(folder: Path, kind: int) -> Generator[bool]:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    _held.add(descriptor)
    try:
        yield _flock(descriptor, kind) and _is_at(folder, descriptor)
    finally:
        _close(descriptor)


@contextmanager
def _locked(file: Path, place: Path, *, create: bool = True) -> Generator[Lock]:
    descriptor = _acquire(file, place, os.O_CREAT if create else 0)
    _held.add(descriptor)
    try:
        with suppress(OSError):  # on a full disk: the holder's name is only for messages
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, to_json(_holder()).encode(), 0)
        yield Lock(file, descriptor)
    finally:
        if descriptor in _held and _is_at(file, descriptor):
            with suppress(OSError):
                file.unlink()
        _close(descriptor)


def _acquire(file: Path, place: Path, flags: int) -> int:
    """Return the descriptor of the locked file, which is still in place: an earlier holder may have removed it."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o666)
        if not _flock(descriptor, fcntl.LOCK_EX):
            who = _described(descriptor)
            os.close(descriptor)
            raise UsageError(
                f"{place} is in use: {who} is writing to it, and only one process can write at a time. Wait until it "
                "ends, stop it, or choose another folder or file"
            )
        if _is_at(file, descriptor):
            return descriptor
        os.close(descriptor)


def _flock(descriptor: int, kind: int) -> bool:
    """Whether the lock was free and is now held."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _log.warning("this file system has no locks (%s); make sure that only one process writes to it", error.strerror)
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except OSError:
        return False


def _close(descriptor: int) -> None:
    if descriptor in _held:  # else this is a forked child, which has closed it
        _held.remove(descriptor)
        os.close(descriptor)


def _holder() -> dict[str, Any]:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"process": os.getpid(), "host": platform.node(), "since": now, "command": shlex.join(sys.argv)}


def _described(descriptor: int) -> str:
    try:
        holder = parse_json(os.pread(descriptor, 10_000, 0).decode())
        return f"process {holder['process']} on {holder['host']} ({holder['command']}), since {holder['since']},"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
