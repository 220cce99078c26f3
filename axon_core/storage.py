"""Files that are whole or not there: folders renamed into place, checksums, and trees of tensors without pickle."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from axon_core.errors import CheckpointError, UsageError
from axon_core.json_text import to_json

__all__ = [
    "TREE",
    "check_output",
    "free_folder",
    "new_folder",
    "read_tree",
    "remove",
    "sha256",
    "sweep",
    "verify",
    "whole_file",
    "whole_folder",
    "write_tree",
    "writing",
]

TREE = "state.json"
"""The file of what `write_tree` writes that is no tensor."""
_TENSORS, _MANIFEST = "tensors.safetensors", "manifest.json"
_REFERENCE, _NUMBER = "$tensor", "$number"
_UNFINISHED = ".unfinished-"


class _WriteError(CheckpointError):
    """A failed write; its cause is what the system said."""


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
        remedy = "free some space" if full else "choose a folder that can be written to"
        raise _WriteError(f"cannot write {place}: {reason}; {remedy}. What was saved before is intact.") from error


def free_folder(target: Path) -> Path:
    """Return the absolute path of `target`. Raises `UsageError` where something is there already."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} is not empty, and nothing is overwritten; choose another folder with --out")
    return target.resolve()


@contextmanager
def whole_file(target: Path) -> Generator[Path]:
    """Yield the path of an empty draft beside `target` that takes its place at the end of the block.

    The draft's name ends as the target's does. Whatever goes wrong removes it, and leaves `target` as it was.

    Raises:
        CheckpointError: the disk is full or the place cannot be written to.
    """
    with writing(target):
        draft = _begun(target)
    try:
        with writing(target):
            yield draft
            _flush(draft)
            os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def check_output(target: Path, source: Path | None = None) -> None:
    """Check, before long work, that `target` can be written, and that it is not the file that is read.

    Raises:
        CheckpointError: it cannot be written.
        UsageError: it is `source`.
    """
    if source is not None and target.exists() and target.samefile(source):
        raise UsageError(f"--output must be another file than --input, got {target} for both")
    with writing(target):
        _begun(target).unlink()


def _begun(target: Path) -> Path:
    """Make an empty draft of a file beside it."""
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    draft = target.parent / f"{_UNFINISHED}{os.getpid()}-{target.name}"
    draft.touch()
    return draft


@contextmanager
def whole_folder(target: Path) -> Generator[Path]:
    """Yield a temporary folder that becomes `target` at the end of the block: completely, or not at all.

    Whatever goes wrong removes the temporary folder; after a kill, `sweep` does.

    Raises:
        CheckpointError: the disk is full or the place cannot be written to.
    """
    temporary = target.with_name(f"{_UNFINISHED}{os.getpid()}-{target.name}")
    try:
        with writing(target):
            temporary.mkdir(parents=True)
            yield temporary
            for path in (*temporary.rglob("*"), temporary):
                _flush(path)
            if target.exists():
                remove(target)
            temporary.rename(target)
            _flush(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def new_folder(target: Path) -> Generator[Path]:
    """Do what `whole_folder` does, and add a manifest with the SHA-256 of every file for `verify`."""
    with whole_folder(target) as temporary:
        yield temporary
        files = sorted(file for file in temporary.rglob("*") if file.is_file())
        sums = {file.relative_to(temporary).as_posix(): sha256(file) for file in files}
        (temporary / _MANIFEST).write_text(to_json({"sha256": sums}, indent=1), encoding="utf-8")


def verify(folder: Path) -> str | None:
    """Return what is wrong with a folder that `new_folder` made, or None."""
    try:
        sums = json.loads((folder / _MANIFEST).read_text(encoding="utf-8-sig"))["sha256"]
        if not {TREE, _TENSORS} <= sums.keys():
            return f"{_MANIFEST} does not name {TREE} and {_TENSORS}"
        for name, checksum in cast(dict[str, str], sums).items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if sha256(folder / name) != checksum:
                return f"{name} does not match its checksum"
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except (KeyError, TypeError, AttributeError, ValueError):
        return f"{_MANIFEST} is unreadable"
    return None


def remove(folder: Path) -> None:
    """Remove a folder so that, whenever this is killed, it is never there in part."""
    doomed = folder.with_name(f"{_UNFINISHED}{os.getpid()}-old-{folder.name}")
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what a killed process left unfinished in `folder`."""
    for left in folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(left, ignore_errors=True)


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file's contents, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_tree(folder: Path, tree: Mapping[str, Any]) -> None:
    """Write nested dictionaries and lists of tensors, numbers, strings and None as JSON plus safetensors.

    Tensors that are one and the same, such as tied weights, are written once.
    """
    tensors: dict[str, Tensor] = {}
    (folder / TREE).write_text(json.dumps(_detach(tree, "", tensors, {}), allow_nan=False), encoding="utf-8")
    save_file(tensors, folder / _TENSORS)


def read_tree(folder: Path) -> dict[str, Any]:
    """Read what `write_tree` wrote; check it by `verify` first."""
    return _attach(json.loads((folder / TREE).read_text(encoding="utf-8-sig")), load_file(folder / _TENSORS))


def _detach(node: Any, name: str, tensors: dict[str, Tensor], seen: dict[tuple[Any, ...], str]) -> Any:
    """Move the tensors of `node` into `tensors`, and leave references."""
    if isinstance(node, Mapping):
        children = cast(Mapping[str, Any], node).items()
        return {key: _detach(child, f"{name}/{key}", tensors, seen) for key, child in children}
    if isinstance(node, list | tuple):
        children = enumerate(cast(list[Any], node))
        return [_detach(child, f"{name}/{i}", tensors, seen) for i, child in children]
    if isinstance(node, float) and not math.isfinite(node):  # which JSON has no words for
        return {_NUMBER: str(node)}
    if not isinstance(node, Tensor):
        return node
    identity = (node.data_ptr(), node.shape, node.stride(), node.dtype) if node.numel() else (name,)
    if identity not in seen:
        seen[identity] = name
        # A copy, so that no two share memory, which safetensors refuses.
        tensors[name] = node.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    return {_REFERENCE: seen[identity]}


def _attach(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(node, dict):
        if node.keys() == {_REFERENCE}:
            return tensors[node[_REFERENCE]]
        if node.keys() == {_NUMBER}:
            return float(node[_NUMBER])
        return {key: _attach(child, tensors) for key, child in cast(dict[str, Any], node).items()}
    if isinstance(node, list):
        return [_attach(child, tensors) for child in cast(list[Any], node)]
    return node


def _flush(path: Path) -> None:
    """Have the system write a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
