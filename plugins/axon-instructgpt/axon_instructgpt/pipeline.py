"""A pipeline: stages that run one after another, each in a folder of its own, as one recipe describes them.

summary = "X aligned by Y"
command = "align"               # what it is for: `axon train` says so
seed = 0                        # is added to the seeds of all stages
[sft]                           # a stage; by default a training, with the tables of a recipe
model = { init = "runs/x" }
trainer = { type = "sft", steps = 500 }
data = { path = "demonstrations.jsonl" }
[reward]
model = { init = "@sft" }       # @ and a stage's name stand for its folder
trainer = { type = "reward", steps = 500 }
data = { path = "rankings.jsonl" }
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, cast

from axon_core import CheckpointError, ConfigError, UsageError, at, parse_json, parse_toml, to_json
from axon_core.checkpoint import Lock, check_folder, is_occupied, lock_folder, remove_leftovers, write_text, writing
from axon_core.papers import find_recipe
from axon_core.registry import Spec
from axon_core.training import describe_device, override
from axon_instructgpt.stage import STAGES, Stage

__all__ = ["Pipeline", "align"]

_RECORD = "align.json"
_TRAINING = "training"


@dataclass(frozen=True)
class Pipeline:
    """The stages of a recipe, in the order of the file."""

    name: str
    """The file's name."""
    source: str
    """Where it was read from, for messages."""
    stages: dict[str, dict[str, Any]]
    """Each stage's table, by its name."""
    device: str | None = None
    """Where all stages compute; left out, where their tables say. A stage may continue on another device."""
    logs: tuple[str, ...] = ()
    """Where all trainings log their numbers (`Trainer.Config.log`); left out, where their tables say."""

    @classmethod
    def load(
        cls, name: str, overrides: Iterable[str] = (), device: str | None = None, logs: Iterable[str] = ()
    ) -> Self:
        """Read an installed recipe by name, or a TOML file by path, and apply `overrides` like `"ppo.trainer.steps=9"`.

        All stages compute on `device`, if it is given, and all trainings log to `logs` (`Trainer.Config.log`), if any.

        Raises:
            UnknownKey: no installed plugin provides a recipe of that name.
            ConfigError: the file is not TOML, or not a pipeline; a stage breaks a rule, or refers to one that comes
                later.
            UsageError: there is no such file, an override is malformed, or it is the recipe of a single training run.
        """
        path = Path(name)
        if path.suffix != ".toml" and not path.is_file():
            path = find_recipe(name).path
        try:
            tables = override(parse_toml(path.read_text(encoding="utf-8-sig")), overrides)
        except OSError as error:
            raise UsageError(f"cannot read the recipe {path}: {error.strerror}") from None
        except ValueError as error:
            raise ConfigError([((), f"not valid TOML: {error}")], str(path)) from None
        if isinstance(trainer := tables.get("trainer"), str) or (
            isinstance(trainer, dict) and "trainer" not in trainer
        ):
            raise UsageError(
                f"{name} describes one training, without stages: use `{shlex.join(['axon', 'train', name])}`"
            )
        for words in ("summary", "command"):
            tables.pop(words, None)
        seed = tables.pop("seed", 0)
        pipeline = cls(path.stem, str(path), tables, device, tuple(logs))
        pipeline._check()
        return pipeline.reseeded(seed) if seed != 0 else pipeline

    def _check(self) -> None:
        """Check everything that can be known before the first stage: the last may run hours later."""
        with at(source=self.source):
            if not self.stages:
                raise ConfigError([((), "a pipeline must have a table for each stage, got none")])
            for name, table in self.stages.items():
                if not isinstance(table, dict):  # pyright: ignore[reportUnnecessaryIsInstance]  TOML may hold anything
                    raise ConfigError([((name,), f"a stage must be a table, got {table!r}")])
                self.build(name, Path())

    def reseeded(self, seed: int) -> Self:
        """Return the same pipeline with `seed` added to all seeds. Raises `ConfigError` unless it is 0 or more."""
        if type(seed) is not int or seed < 0:
            raise ConfigError([(("seed",), f"must be an integer of at least 0, got {seed!r}")], self.source)
        return replace(self, stages={name: _kind(table).reseeded(table, seed) for name, table in self.stages.items()})

    def build(self, name: str, out: Path) -> Any:
        """Return a stage; the stages it refers to are in folders of `out`.

        Raises:
            ConfigError: its table breaks a rule, or refers to a stage that is not before it.
        """
        before = [*self.stages][: [*self.stages].index(name)]
        with at(name, source=self.source):
            table = _placed(self.stages[name], out, before, ())
            for option, value in (("device", self.device), ("log", [*self.logs])):
                if value:
                    table = _kind(table).with_option(table, option, value)
            return STAGES.build(Spec.of({"type": _TRAINING, **table}))


def align(pipeline: Pipeline, out: Path, tell: Callable[[str], None]) -> None:
    """Run the stages of a pipeline in the folder `out`, skipping finished ones and resuming an unfinished one.

    Args:
        pipeline: the stages.
        out: where each stage gets a folder of its name.
        tell: called with which stage begins, and which are done.

    Raises:
        UsageError: `out` holds something else, a stage was started with another table, or another process is working
            there.
        CheckpointError: the folder cannot be written to, is moved or deleted meanwhile, its record is damaged,
            or what a stage wrote was changed.
    """
    _Record.open(out, pipeline)  # a folder of something else is not touched
    with ExitStack() as stack:
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(lock_folder(out))
            remove_leftovers(out)
        _stages(pipeline, out, _Record.open(out, pipeline), lock, tell)


def _stages(pipeline: Pipeline, out: Path, record: _Record, lock: Lock, tell: Callable[[str], None]) -> None:
    total = len(pipeline.stages)
    for number, (name, table) in enumerate(pipeline.stages.items(), 1):
        if record.finished(name):
            for folder in (out / name, out / name / "model"):  # of a stage of its own kind, and of a training
                check_folder(folder)
            tell(f"[{number}/{total}] {name}: done already")
            continue
        stage = pipeline.build(name, out)
        where = "" if stage.device is None else f", on {describe_device(stage.device)}"
        tell(f"[{number}/{total}] {name}{where}")
        record.note(name, table, None)
        begun = time.monotonic()
        with at(name, source=pipeline.source):
            stage.run(out / name)
        if lock.is_lost():
            raise CheckpointError(
                f"{out} was moved or deleted during the run; continue with axon align --out and its new path"
            )
        record.note(name, table, round(time.monotonic() - begun, 1))


class _Record:
    """What has been done in a folder: `align.json`, each stage's table, and the seconds it took once it is done."""

    def __init__(self, file: Path, stages: dict[str, dict[str, Any]]) -> None:
        self._file, self._stages = file, stages

    @classmethod
    def open(cls, out: Path, pipeline: Pipeline) -> _Record:
        file = out / _RECORD
        try:
            stages = cast(dict[str, dict[str, Any]], parse_json(file.read_text(encoding="utf-8-sig"))["stages"])
        except (FileNotFoundError, NotADirectoryError):
            if is_occupied(out):
                raise UsageError(
                    f"{out} is not empty, and is not a pipeline's folder; choose another with --out"
                ) from None
            return cls(file, {})
        except OSError as error:
            raise CheckpointError(f"cannot read {file}: {error.strerror}; choose another folder with --out") from None
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{file} is damaged: {error!r}; choose another folder with --out") from None
        names = [*pipeline.stages]
        for i, (name, table) in enumerate(pipeline.stages.items()):
            known = stages.get(name)
            if known is not None and not (out / name).exists():  # removed, so that it is done again
                del stages[name]
                known = None
            if known is not None and known["table"] != table:
                raise UsageError(
                    f"the stage {name} in {out} was started with another table: {_difference(known['table'], table)}. "
                    f"Choose another folder with --out, or remove {out / name} and the folders of later stages"
                )
            if (known is None or known["seconds"] is None) and (
                later := [other for other in names[i + 1 :] if (out / other).exists()]
            ):
                raise UsageError(
                    f"the stage {name} in {out} must run again, but later stages have already started and would not "
                    f"fit it. Also remove their folders: {', '.join(str(out / other) for other in later)}"
                )
        return cls(file, stages)

    def finished(self, name: str) -> bool:
        return self._stages.get(name, {}).get("seconds") is not None

    def note(self, name: str, table: dict[str, Any], seconds: float | None) -> None:
        self._stages[name] = {"table": table, "seconds": seconds}
        write_text(self._file, to_json({"stages": self._stages}, indent=1))


def _kind(table: dict[str, Any]) -> type[Stage]:
    return STAGES[table.get("type", _TRAINING)]


def _placed(value: Any, out: Path, before: list[str], place: tuple[str, ...]) -> Any:
    """Return a stage's table with `@name/file` replaced by where that is."""
    if isinstance(value, dict):
        items = cast(dict[str, Any], value).items()
        return {key: _placed(inner, out, before, (*place, key)) for key, inner in items}
    if isinstance(value, list):
        return [_placed(inner, out, before, (*place, str(i))) for i, inner in enumerate(cast(list[Any], value))]
    if not (isinstance(value, str) and value.startswith("@")):
        return value
    name, _, rest = value[1:].partition("/")
    if name not in before:
        known = ", ".join(f"@{other}" for other in before) or "there is none"
        raise ConfigError(
            [(place, f"must be @ and the name of an earlier stage, for its folder ({known}), got {value!r}")]
        )
    return str(out / name / rest) if rest else str(out / name)


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    name = next(key for key in {**old, **new} if old.get(key) != new.get(key))
    before, now = old.get(name), new.get(name)
    if isinstance(before, dict) and isinstance(now, dict):
        return f"{name}.{_difference(before, now)}"
    return f"{name} was {before!r} and is now {now!r}"
