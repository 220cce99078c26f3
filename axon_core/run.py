"""The run folder: everything one training leaves behind.

run.json          recipe as resolved, versions, hardware, command
metrics.jsonl     one {"step", "split", "name", "value"} a line
loss.png          the curves, where matplotlib is installed
checkpoints/      step-<n>/
model/            what the trainer exported at the end
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from axon_core.checkpoint import Checkpoints
from axon_core.config import validate
from axon_core.errors import CheckpointError, ConfigError, UsageError
from axon_core.json_text import to_json
from axon_core.recipe import Recipe
from axon_core.storage import new_folder, sweep, writing

__all__ = ["RunFolder"]

_FACTS_DRAFT = ".run.json"


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
        """Raise `UsageError` where `path` holds something already."""
        if path.exists() and (not path.is_dir() or any(file.name != _FACTS_DRAFT for file in path.iterdir())):
            raise UsageError(
                f"{path} is not empty, and a run never overwrites another: continue it with --resume, or choose "
                "another folder with --out"
            )

    @staticmethod
    def free_name(name: str, parent: Path = Path("runs")) -> Path:
        """Return the first of `<parent>/<name>-1`, `-2`, … that does not exist."""
        return next(path for n in itertools.count(1) if not (path := parent / f"{name}-{n}").exists())

    @classmethod
    def create(cls, path: Path, facts: Mapping[str, Any], keep: int = 2) -> RunFolder:
        """Make a new run folder; `facts` go into `run.json`, beside what is known of the machine.

        Raises:
            UsageError: the folder is not empty.
            CheckpointError: it cannot be written to.
        """
        cls.check_free(path)
        run = cls(path, {**facts, **_environment()}, keep)
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
            run.write_facts()
        return run

    @classmethod
    def open(cls, path: Path, keep: int = 2) -> RunFolder:
        """Return an existing run folder.

        Raises:
            CheckpointError: there is none, or its `run.json` is unreadable.
        """
        file = path / "run.json"
        try:
            return cls(path, validate(_Facts, json.loads(file.read_text(encoding="utf-8-sig"))).model_dump(), keep)
        except (FileNotFoundError, NotADirectoryError):
            what = f"{file} is missing" if path.is_dir() else "it is a file" if path.exists() else "no such folder"
            raise CheckpointError(
                f"{path} is not a run folder: {what}. Give the folder that `axon train` named"
            ) from None
        except (ConfigError, ValueError, OSError) as error:
            raise CheckpointError(f"{file} is damaged or cannot be read: {error}") from None

    def recipe(self, overrides: Iterable[str] = ()) -> Recipe:
        """Return the recipe it was trained by, with `overrides`. Raises `CheckpointError` where it had none."""
        tables = dict(self.facts.get("recipe") or {})
        if not tables:
            raise CheckpointError(f"{self.path} was trained from Python, not by a recipe, so it can go on only there")
        return Recipe.of(tables, tables.pop("name"), str(self.path / "run.json"), overrides)

    def write_facts(self) -> None:
        """Write `run.json`, replacing it at once."""
        with writing(self.path):
            temporary = self.path / _FACTS_DRAFT
            temporary.write_text(to_json(self.facts, indent=1, default=str), encoding="utf-8")
            os.replace(temporary, self.path / "run.json")

    def rewind(self, step: int) -> None:
        """Forget whatever came after `step`: later checkpoints, and later lines of the metrics."""
        with writing(self.path):
            sweep(self.path)
            self.checkpoints.clean(step)
            if self.metrics.exists():
                kept = "".join(to_json(line) + "\n" for line in self.read_metrics() if line["step"] <= step)
                temporary = self.path / ".metrics.jsonl"
                temporary.write_text(kept, encoding="utf-8")
                os.replace(temporary, self.metrics)

    def read_metrics(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of the metrics; one that a kill has cut off ends them."""
        with self.metrics.open(encoding="utf-8-sig") as lines:
            for line in lines:
                try:
                    yield json.loads(line)
                except ValueError:
                    return

    def publish(self) -> None:
        """Copy what the latest checkpoint exported to `model/`."""
        latest = self.checkpoints.folder / self.checkpoints.names()[-1]
        with new_folder(self.model) as folder:
            shutil.copytree(latest / "model", folder, dirs_exist_ok=True)


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
