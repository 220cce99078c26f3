"""Running a comparison: which runs are to be done, what is noted of each, and the progress."""

from __future__ import annotations

import sys
import time
from datetime import timedelta

from axon_core import AxonError, CheckpointError
from axon_core.cli import echo, echo_renewed
from axon_lab.compare.folder import ComparisonFolder, RunEnd, RunKey
from axon_lab.compare.processes import Ended, WorkerJob, run_jobs
from axon_lab.compare.worker import DISK

__all__ = ["ComparisonRuns"]


class ComparisonRuns:
    """Does the runs of a comparison that are not done.

    Runs that were killed, that a full disk ended or that were interrupted continue from their last checkpoint. A run
    that failed is left as it is, because it would fail again.

    Args:
        folder: the comparison.
        jobs: how many runs at the same time.
        retry: whether runs that failed are done again, too.
    """

    def __init__(self, folder: ComparisonFolder, jobs: int, retry: bool = False) -> None:
        self._folder, self._jobs = folder, jobs
        self._results = {key: folder.read_result(key) is not None for key in folder.keys()}
        self._open = [key for key, done in self._results.items() if not done and (retry or self._is_open(key))]
        self._line = _Line(len(self._results), sum(self._results.values()))
        self._trouble: CheckpointError | None = None

    def run(self) -> bool:
        """Do the runs, and return whether a signal ended them early.

        Raises:
            CheckpointError: the folder cannot be written to; what is done is kept, and another call continues.
        """
        cells = sorted({key.cell for key in self._open})
        paces = [self._pace(cell) for cell in cells if self._folder.steps(cell) is None]
        interrupted = run_jobs(paces, self._jobs, lambda ended, running: None) if paces else False
        if not interrupted and self._trouble is None:
            interrupted = run_jobs(self._runs(), self._jobs, self._line.show)
            self._line.end()
        if self._trouble is not None:
            raise self._trouble
        return interrupted

    def _is_open(self, key: RunKey) -> bool:
        end = self._folder.ends.get(self._folder.name(key))
        return end is None or end.again

    def _runs(self) -> list[WorkerJob]:
        place, found = str(self._folder.path), list[WorkerJob]()
        for key in self._open:
            if (steps := self._folder.steps(key.cell)) is not None:  # else its pace could not be measured
                words = ["run", place, str(key.cell), str(key.seed), str(steps)]
                found.append(WorkerJob(words, lambda end, key=key: self._note(key, end)))
        return found

    def _pace(self, cell: int) -> WorkerJob:
        echo(f"measuring the pace of {' · '.join(self._folder.design.cells[cell].values)}", err=True)
        budget = self._folder.design.budget
        words = ["pace", str(self._folder.path), str(cell), str(budget.amount if budget else 1.0)]

        def note(end: Ended) -> bool:
            return end.code == 0 or all(self._note(RunKey(cell, seed), end) for seed in self._folder.design.seeds)

        return WorkerJob(words, note)

    def _note(self, key: RunKey, end: Ended) -> bool:
        """Keep how a run ended; return whether others may begin."""
        result = self._folder.read_result(key)
        if result is not None:
            note = None
            self._line.done += 1
        elif end.asked or end.code == 130:
            note = None  # it waits to be continued
        elif end.code < 0:
            note = RunEnd(status="killed", reason=end.reason, again=True)
        else:
            note = RunEnd(status="failed", reason=end.reason, again=end.code == DISK)
        if note is not None:
            self._line.failed += 1
            self._line.say(f"{self._folder.relative(key)}: {note.status}: {note.reason}")
        try:
            self._folder.note_end(key, note)
        except CheckpointError as error:
            self._trouble = error
        if end.code == DISK and note is not None and self._trouble is None:
            self._trouble = CheckpointError(f"{note.reason} Then call the same command again: it continues")
        return self._trouble is None

    def check(self) -> None:
        """Raise `AxonError` if a run is not done."""
        runs = [run for cell in self._folder.comparison().cells for run in cell.runs]
        if left := [run for run in runs if run.status != "done"]:
            first = next((run for run in left if run.reason), left[0])
            raise AxonError(
                f"{len(left)} of {len(runs)} runs are not done; the first is {first.folder}: "
                f"{first.reason or 'waiting'}. The same command continues what was killed, and with --retry what failed"
            )


class _Line:
    """The line of progress: runs done, running and failed, runs a minute, and the remaining time."""

    def __init__(self, total: int, done: int) -> None:
        self.done, self.failed = done, 0
        self._total, self._first = total, done
        self._begun = self._shown = time.monotonic()
        self._pause = 0.5 if sys.stderr.isatty() else 10.0
        self._last = ""

    def show(self, ended: int, running: int) -> None:
        """Show the line if it is due."""
        now = time.monotonic()
        text = f"runs {self.done}/{self._total}  {running} running" + f"  {self.failed} failed" * bool(self.failed)
        if now - self._shown < self._pause or (text == self._last and not sys.stderr.isatty()):
            return
        self._shown, self._last = now, text
        if ended:
            rate = ended / (now - self._begun)
            left = timedelta(seconds=round((self._total - self._first - ended) / rate))
            text += f"  {60 * rate:.1f}/min  ETA {left}"
        echo_renewed(text, last=False)

    def say(self, text: str) -> None:
        """Print a line that stays."""
        echo_renewed(text, last=True)

    def end(self) -> None:
        """Print the last line."""
        echo_renewed(f"runs {self.done}/{self._total} done" + f", {self.failed} failed" * bool(self.failed), last=True)
