"""The checkpoints of a run on disk: each complete or absent, checked when it is read, never pickle."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from axon_core.checkpoint.atomic import TREE, remove, remove_leftovers, writing
from axon_core.checkpoint.locks import pinned, unpinned
from axon_core.checkpoint.manifest import verify, verify_together
from axon_core.checkpoint.saving import INTERIM, Saving
from axon_core.checkpoint.trees import read_tree, read_values
from axon_core.errors import CheckpointError, UsageError
from axon_core.processes import first_does, from_first, is_first

__all__ = ["Checkpoints"]


class Checkpoints:
    """The checkpoints of a run: folders `step-<n>`, each complete or absent.

    A checkpoint holds the training state, the exported `model/` and a manifest of checksums.

    Args:
        folder: where they are.
        keep: how many of the latest survive a `save`; an interim one, of a training that was interrupted, is beside
            them until the next is made, so that in the end a resumed training leaves what any other does.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self._keep = keep
        self._saving: Saving | None = None

    def names(self) -> list[str]:
        """Names of the checkpoints, earliest first."""
        steps = (found.name.removeprefix("step-") for found in self.folder.glob("step-*") if found.is_dir())
        return [f"step-{step}" for step in sorted(int(step) for step in steps if step.isdecimal())]

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        export: Callable[[Path], None],
        *,
        interim: bool = False,
        background: bool = False,
    ) -> Path:
        """Write checkpoint `step-<step>`, then drop all but the latest ones; all processes call it alike.

        Each process writes its part of `state`. Each calls `export` with a folder; what the first writes there is kept.

        Args:
            step: steps done.
            state: the training state.
            export: writes what a user takes away into a folder.
            interim: whether only a training that was interrupted needs it.
            background: return when the state is copied in memory, and write it meanwhile; `wait` completes it.

        Raises:
            CheckpointError: it, or one written before in the background, could not be written; earlier checkpoints are
                intact.
            PeerError: that happened in another process.
            ContractError: the state could not be read again, or the processes have different ones.
        """
        self.wait()
        first_does(self._make)
        target = self.folder / f"step-{step}"
        saving = Saving(target, state, interim=interim, done=self._prune)
        if background:
            saving.begin(export)
            self._saving = saving
        else:
            saving.complete(export)
        return target

    @property
    def is_saving(self) -> bool:
        """Whether `save` left one to the background that `wait` has not completed."""
        return self._saving is not None

    def has_ended(self) -> bool:
        """Whether what `save` left to the background has been written, or has failed, as far as this process knows."""
        return self._saving is not None and self._saving.has_ended()

    def wait(self) -> Path | None:
        """Wait for what `save` left to the background and return it, or None; all processes call it alike.

        Raises:
            CheckpointError: it could not be written; earlier checkpoints are intact.
            PeerError: that happened in another process.
        """
        saving, self._saving = self._saving, None
        return None if saving is None else saving.wait()

    def close(self) -> None:
        """Give what `save` left to the background some seconds to end, whatever the other processes do."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.give_up()

    def _make(self) -> None:
        with writing(self.folder):
            self.folder.mkdir(exist_ok=True)  # its parent must exist: a run that was moved is not made again

    def _prune(self) -> None:
        """Drop all but the latest checkpoints; one that is being read stays until next time."""
        names = self.names()
        regular = [name for name in names if not (self.folder / name / INTERIM).exists()]
        spared = {*regular[-self._keep :], *names[-1:]}
        for name in (name for name in names if name not in spared):
            with unpinned(self.folder / name) as unread:
                if unread:
                    remove(self.folder / name)

    def find(self, name: str | None = None) -> Path | None:
        """Return an intact checkpoint by name, `"previous"` for the last but one, or the latest; None if there is none.

        All processes call it alike, and get the same.

        Raises:
            UsageError: there is no checkpoint of that name.
            CheckpointError: it is damaged; the message names the latest one that is not.
        """
        names = from_first(self.names())
        wanted = names[-2] if name == "previous" and len(names) > 1 else name
        if wanted is not None and wanted not in names:
            raise UsageError(f"no checkpoint {wanted} in {self.folder}; there are: {', '.join(names) or 'none'}")
        if not names:
            return None
        folder = self.folder / (wanted or names[-1])
        if problem := verify_together(folder):
            if not from_first(folder.exists()):  # a running training has replaced it by a later one
                return self.find(name)
            good = from_first(self.intact() if is_first() else None)
            remedy = (
                f"resume with --from {good}"
                if good
                else "no other checkpoint is intact: start the run again in another folder"
            )
            raise CheckpointError(f"checkpoint {folder.name} in {self.folder} is damaged: {problem}; {remedy}")
        return folder

    def intact(self) -> str | None:
        """Return the name of the latest checkpoint whose files are those that were written, or None."""
        return next((name for name in reversed(self.names()) if not verify(self.folder / name)), None)

    def learning_rate(self, name: str) -> float:
        """Return the peak of the learning rate that a checkpoint was made with.

        Raises:
            CheckpointError: it is damaged.
        """
        rate = read_values(self.folder / name).get("lr")
        if not isinstance(rate, int | float):
            raise CheckpointError(f"{self.folder / name / TREE} is damaged: it has no learning rate")
        return rate

    def clean(self, step: int) -> None:
        """Remove what a killed process left: drafts, checkpoints after `step`, and those beyond the number to keep."""
        if not self.folder.is_dir():
            return
        remove_leftovers(self.folder)
        for name in self.names():
            if int(name.removeprefix("step-")) > step:  # a resumed run writes it again
                remove(self.folder / name)
        self._prune()

    @contextmanager
    def reading(self, name: str | None = None) -> Generator[Path | None]:
        """Yield what `find` returns; a running training does not remove it within the block.

        Raises:
            UsageError: there is no checkpoint of that name.
            CheckpointError: it is damaged; the message names the latest one that is not.
        """
        while found := self.find(name):
            with pinned(found) as there:
                if there:
                    yield found
                    return
        yield None

    @staticmethod
    def read(checkpoint: Path) -> dict[str, Any]:
        """Return the training state of a checkpoint that `find` found, with a `StoredTensor` for each tensor.

        Raises:
            CheckpointError: it is damaged.
        """
        return read_tree(checkpoint)
