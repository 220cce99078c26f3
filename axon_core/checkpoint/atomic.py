"""Files and folders that are whole or absent, claimed by one writer, and checked by checksums."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from safetensors import SafetensorError

from axon_core.checkpoint.locks import is_lock, lock_output
from axon_core.errors import CheckpointError, UsageError

__all__ = [
    "TENSORS",
    "TREE",
    "atomic_file",
    "atomic_folder",
    "claimed_file",
    "claimed_folder",
    "is_occupied",
    "make_folder",
    "remove",
    "remove_leftovers",
    "write_text",
    "writing",
]

TREE, TENSORS = "state.json", "tensors.safetensors"
"""The two files of a tree of tensors (`axon_core.checkpoint.trees`), which a checkpoint's manifest must name."""
_UNFINISHED = ".unfinished-"
_DRAFT = re.compile(rf"{re.escape(_UNFINISHED)}[0-9a-f]{{8}}-(?P<name>.+)", re.DOTALL)


class _WriteError(CheckpointError):
    """A failed write; its cause is the system's error."""


@contextmanager
def writing(place: Path) -> Generator[None]:
    """Turn what a full disk or a forbidden folder raises in the block into a `CheckpointError` that names `place`.

    Of nested blocks the outermost names it.
    """
    try:
        yield
    except (OSError, SafetensorError, _WriteError) as failure:
        error = failure.__cause__ if isinstance(failure, _WriteError) else failure
        if isinstance(error, shutil.Error):  # what `copytree` raises: a list of (source, target, reason)
            reason = error.args[0][0][2]
        else:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        full = any(os.strerror(number) in reason for number in (errno.ENOSPC, errno.EDQUOT))
        remedy = "free some space" if full else "choose a writable folder"
        raise _WriteError(f"cannot write {place}: {reason}; {remedy}. Earlier saved files are intact.") from error


def is_occupied(folder: Path) -> bool:
    """Whether something is at `folder` other than a folder with nothing but locks and leftovers of a kill."""
    if not folder.is_dir():
        return folder.exists()
    return any(not is_lock(file.name) and not _DRAFT.match(file.name) for file in folder.iterdir())


@contextmanager
def claimed_folder(target: Path) -> Generator[Path]:
    """Claim, before long work, a new or empty folder for the block: yield its absolute path, with a lock beside it.

    Leftovers of a killed process are removed.

    Raises:
        UsageError: something is there already, or another process is making it; the message names that process.
        CheckpointError: the place cannot be written to.
    """
    place = target.resolve()
    with writing(place):
        place.parent.mkdir(parents=True, exist_ok=True)
    with _claimed(place):  # before the check: another process may finish it, or its lock be left by one that was killed
        if is_occupied(target):
            raise UsageError(f"{target} is not empty, and nothing is overwritten; choose another folder with --out")
        yield place


@contextmanager
def claimed_file(target: Path, source: Path | None = None) -> Generator[None]:
    """Claim, before long work, a file that is to be written within the block, with a lock beside it.

    Leftovers of a killed process are removed. A device, such as the standard output, is not locked.

    Raises:
        CheckpointError: it cannot be written.
        UsageError: it is `source`, the file that is read, or another process writes it; the message names that process.
    """
    if source is not None and target.exists() and target.samefile(source):
        raise UsageError(f"--output must not be the same file as --input, got {target} for both")
    with writing(target):
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    if target.exists() and not target.is_file():
        yield
        return
    with _claimed(target):
        yield


@contextmanager
def _claimed(target: Path) -> Generator[None]:
    """Lock an output, whatever links lead to it, and sweep away its drafts."""
    with ExitStack() as stack:
        with writing(target):
            stack.enter_context(lock_output(target.resolve()))
            remove_leftovers(target.parent, target.name)
        yield


@contextmanager
def atomic_file(target: Path) -> Generator[Path]:
    """Yield the path of an empty draft beside `target` that takes its place at the end of the block.

    The draft's name ends as the target's does. Any error removes it, and leaves `target` as it was.

    Raises:
        CheckpointError: the disk is full or the place cannot be written to.
    """
    with writing(target):
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
        draft = _draft(target)
        # Exclusive: a link of that name, which somebody may have put there, is not followed.
        os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))
        mode = draft.stat().st_mode
    try:
        with writing(target):
            yield draft
            draft.chmod(mode)  # as the umask says; some libraries make files for the owner alone
            _flush(draft)
            os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def write_text(file: Path, text: str) -> None:
    """Write a UTF-8 text file, as `atomic_file` does. Raises `CheckpointError` if it cannot be written."""
    with atomic_file(file) as draft:
        draft.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder(target: Path) -> Generator[Path]:
    """Yield a temporary folder that becomes `target` at the end of the block: completely, or not at all.

    Any error removes the temporary folder; after a kill, `remove_leftovers` does.

    Raises:
        CheckpointError: the disk is full, or the place is missing or cannot be written to.
    """
    temporary = _draft(target)
    try:
        with writing(target):
            temporary.mkdir()
            mode = temporary.stat().st_mode & 0o666
            yield temporary
            for path in (*temporary.rglob("*"), temporary):
                if path.is_file():
                    path.chmod(mode)
                _flush(path)
            if target.exists():
                remove(target)
            temporary.rename(target)
            _flush(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Make a folder unless it is there, and those above it; but a draft that was moved away is not made again.

    Raises:
        OSError: it cannot be made, or lies in a draft that is not there.
    """
    in_draft = any(_DRAFT.match(part) for part in folder.parts)
    folder.mkdir(parents=not in_draft, exist_ok=True)


def remove(folder: Path) -> None:
    """Remove a folder so that it is never there in part, even after a kill."""
    doomed = _draft(folder)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left unfinished in `folder`, of all files and folders or only of this name.

    Only the holder of their lock may call it: the lock is how others are known to be dead.
    """
    for left in folder.iterdir():
        found = _DRAFT.match(left.name)
        if found and name in (None, found["name"]):
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def _draft(target: Path) -> Path:
    """Return a name beside `target` for a draft: random, as process ids may be equal in two containers."""
    return target.with_name(f"{_UNFINISHED}{secrets.token_hex(4)}-{target.name}")


def _flush(path: Path) -> None:
    """Flush a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
