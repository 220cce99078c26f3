"""The run folder: everything one training leaves behind.

run.json          recipe as resolved, versions, hardware, command
metrics.jsonl     one {"step", "split", "name", "value"} a line
loss.png          the curves, if matplotlib is installed
checkpoints/      step-<n>/
model/            what the trainer exported at the end
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import platform
import shutil
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Self, cast

import torch
from pydantic import BaseModel

from axon_core.checkpoint.atomic import atomic_file, is_occupied, remove_leftovers, write_text, writing
from axon_core.checkpoint.checkpoint import Checkpoints
from axon_core.checkpoint.locks import Lock, check_unlocked, lock_folder
from axon_core.checkpoint.manifest import new_folder
from axon_core.config import validate
from axon_core.documents import parse_json
from axon_core.errors import CheckpointError, ConfigError, UsageError
from axon_core.json_text import to_json
from axon_core.training.recipe import Recipe

__all__ = ["RunFolder"]

_log = logging.getLogger("axon")
_SUM = "sha256"  # the field of `run.json` with the checksum of the others


class _RunRecipe(BaseModel, extra="allow"):
    name: str


class _Facts(BaseModel, extra="allow"):
    """What `run.json` must hold to be resumed."""

    recipe: _RunRecipe | None = None


class RunFolder:
    """A run's folder on disk.

    Attributes:
        path: the folder.
        facts: the contents of `run.json`.
        checkpoints: its checkpoints.
    """

    def __init__(self, path: Path, facts: dict[str, Any], keep: int = 2) -> None:
        self.path = path
        self.facts = facts
        self._lock: Lock | None = None
        self.checkpoints = Checkpoints(path / "checkpoints", keep)

    @property
    def metrics(self) -> Path:
        """The file of all numbers."""
        return self.path / "metrics.jsonl"

    @property
    def plot(self) -> Path:
        """The picture of the loss curves."""
        return self.path / "loss.png"

    @property
    def model(self) -> Path:
        """The folder of what was exported at the end."""
        return self.path / "model"

    @staticmethod
    def check_free(path: Path) -> None:
        """Raise `UsageError` if `path` holds something already, or another process trains there."""
        _check_empty(path)
        check_unlocked(path)

    @staticmethod
    def free_name(name: str, parent: Path = Path("runs")) -> Path:
        """Return the first of `<parent>/<name>-1`, `-2`, … that does not exist."""
        return next(path for n in itertools.count(1) if not (path := parent / f"{name}-{n}").exists())

    @classmethod
    @contextmanager
    def created(cls, path: Path, facts: Mapping[str, Any], keep: int = 2) -> Generator[RunFolder]:
        """Make a new run folder, `locked` in the block; `facts` go into `run.json`, beside those of the machine.

        Raises:
            UsageError: the folder is not empty, or another process trains there.
            CheckpointError: it cannot be written to.
        """
        _check_empty(path)
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
        with cls(path, {**facts, **_environment()}, keep).locked() as run:
            _check_empty(path)  # another training may have been here just now
            with writing(path):
                remove_leftovers(path)
            run.write_facts()
            yield run

    @classmethod
    def open(cls, path: Path, keep: int = 2) -> RunFolder:
        """Return an existing run folder.

        Raises:
            CheckpointError: there is none, or its `run.json` is unreadable or was changed.
        """
        file = path / "run.json"
        try:
            facts = parse_json(file.read_text(encoding="utf-8-sig"))
            expected = facts.pop(_SUM, None) if isinstance(facts, dict) else None
            if expected not in (None, _checksum(facts)):
                raise CheckpointError(
                    f"{file} was changed after it was written: it does not match its own checksum. Restore it, "
                    f"and change settings with --set; or remove its line {_SUM!r} to use it as it is"
                )
            return cls(path, validate(_Facts, facts).model_dump(), keep)
        except (FileNotFoundError, NotADirectoryError):
            what = f"{file} is missing" if path.is_dir() else "it is a file" if path.exists() else "no such folder"
            raise CheckpointError(
                f"{path} is not a run folder: {what}. Give the folder that `axon train` named"
            ) from None
        except (ConfigError, ValueError, OSError) as error:
            raise CheckpointError(f"{file} is damaged or cannot be read: {error}") from None

    def recipe(self, overrides: Iterable[str] = ()) -> Recipe:
        """Return the recipe it was trained by, with `overrides`. Raises `CheckpointError` if it had none."""
        tables = dict(self.facts.get("recipe") or {})
        if not tables:
            raise CheckpointError(
                f"{self.path} was trained from Python and not by a recipe, so only Python can continue it"
            )
        return Recipe.of(tables, tables.pop("name"), str(self.path / "run.json"), overrides)

    @contextmanager
    def locked(self) -> Generator[Self]:
        """Within the block, keep all other processes from writing to the folder.

        Raises:
            UsageError: another process trains there; the message names it.
            CheckpointError: the folder cannot be written to.
        """
        with ExitStack() as stack:
            with writing(self.path):
                self._lock = stack.enter_context(lock_folder(self.path))
            try:
                yield self
            finally:
                self._lock = None

    def check(self) -> None:
        """Check that a `locked` folder is still in place. Raises `CheckpointError` if it was moved or deleted."""
        if self._lock is not None and self._lock.is_lost():
            raise CheckpointError(
                f"the run folder {self.path} was moved or deleted during training, so training stops. Its "
                "checkpoints moved with it: resume with axon train --resume --out and its new path"
            )

    def write_facts(self) -> None:
        """Write `run.json`, replacing it atomically."""
        with writing(self.path):
            facts = json.loads(to_json(self.facts, default=str))
            write_text(self.path / "run.json", to_json({**facts, _SUM: _checksum(facts)}, indent=1))

    def rewind(self, step: int) -> None:
        """Discard whatever came after `step`: later checkpoints, and later lines of the metrics.

        All other lines of the metrics stay as they are, damaged ones included; a last line that was cut off is removed.
        """
        with writing(self.path):
            remove_leftovers(self.path)
            self.checkpoints.clean(step)
            if not self.metrics.exists():
                return
            with self.metrics.open("rb") as lines, atomic_file(self.metrics) as draft, draft.open("wb") as kept:
                for line in lines:
                    if line.endswith(b"\n") and ((metric := _metric(line)) is None or metric["step"] <= step):
                        kept.write(line)

    def read_metrics(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of the metrics; damaged ones are skipped, with a warning that counts them."""
        damaged = 0
        with self.metrics.open("rb") as lines:
            for line in lines:
                if (metric := _metric(line)) is not None:
                    yield metric
                elif line.endswith(b"\n"):  # otherwise it is the last one, cut off by a kill
                    damaged += 1
        if damaged:
            what = "1 damaged line" if damaged == 1 else f"{damaged} damaged lines"
            _log.warning("left out of %s: %s", self.metrics, what)

    def publish(self) -> None:
        """Copy what the latest checkpoint exported to `model/`. Raises `CheckpointError` if it cannot be written."""
        self.check()
        latest = self.checkpoints.folder / self.checkpoints.names()[-1]
        with new_folder(self.model) as folder:
            shutil.copytree(latest / "model", folder, dirs_exist_ok=True)


def _check_empty(path: Path) -> None:
    if path.is_file():
        raise UsageError(f"{path} is a file, but a run needs a folder: choose another name with --out")
    if is_occupied(path):
        raise UsageError(
            f"{path} is not empty, and a run does not overwrite another: continue it with --resume, or choose another "
            "folder with --out"
        )


def _metric(line: bytes) -> dict[str, Any] | None:
    """Return what a line of the metrics says, or None if it is damaged."""
    try:
        metric = cast(dict[str, Any], parse_json(line.decode("utf-8-sig")))
        if words := metric.pop("not_finite", None):
            metric["value"] = float(words["value"])
    except (ValueError, TypeError, LookupError, AttributeError):
        return None
    kinds = {"step": int, "split": str, "name": str, "value": int | float}
    return metric if all(isinstance(metric.get(name), kind) for name, kind in kinds.items()) else None


def _checksum(facts: Any) -> str:
    """Return the SHA-256 of what `run.json` says, however it is laid out."""
    return hashlib.sha256(to_json(facts, sort_keys=True).encode()).hexdigest()


def _environment() -> dict[str, Any]:
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "versions": {"axon-core": metadata.version("axon-core"), "torch": str(torch.__version__)},
        "hardware": {
            "python": platform.python_version(),
            "system": platform.platform(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }
