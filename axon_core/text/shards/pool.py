"""Units of work done by several processes, each of which encodes one unit after the other."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import cast

from axon_core.errors import AxonError, DataError
from axon_core.text.shards.inputs import Span
from axon_core.text.shards.work import Job, PassageEncoder, UnitProgress, run_unit

__all__ = ["run_units"]

Units = Mapping[int, Sequence[Span]]


def run_units(job: Job, units: Units, processes: int) -> Generator[UnitProgress]:
    """Do units of work, by their numbers, and yield how far they are; with one process, in this one.

    The shards do not depend on the number of processes. An error of one ends them all.

    Raises:
        DataError: a file or a document is wrong, or a process was killed.
        CheckpointError: a shard cannot be written.
    """
    if min(processes, len(units)) <= 1:
        encode = PassageEncoder(job)
        for number, unit in units.items():
            yield from run_unit(job, encode, number, unit)
        return
    with _started(job, min(processes, len(units))) as workers:
        todo = iter(units.items())
        for connection in workers:
            connection.send(next(todo))
        busy = set(workers)
        while busy:
            for ready in wait(list(busy)):
                connection = cast(Connection, ready)
                match _received(connection, workers[connection]):
                    case UnitProgress() as progress:
                        yield progress
                    case AxonError() as error:
                        raise error
                    case _ if (unit := next(todo, None)) is not None:
                        connection.send(unit)
                    case _:
                        busy.remove(connection)


@contextmanager
def _started(job: Job, count: int) -> Generator[dict[Connection, SpawnProcess]]:
    """Yield processes by what connects to them; they end with the block, or when this process dies."""
    context = multiprocessing.get_context("spawn")
    workers: dict[Connection, SpawnProcess] = {}
    try:
        for _ in range(count):
            connection, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, job), daemon=True)
            process.start()
            theirs.close()
            workers[connection] = process
        yield workers
    finally:
        for connection, process in workers.items():
            connection.close()
            process.terminate()
            process.join()


def _received(connection: Connection, process: SpawnProcess) -> UnitProgress | AxonError | None:
    try:
        return connection.recv()
    except EOFError:
        process.join()
        code = process.exitcode
        how = f"by signal {-code}" if code and code < 0 else f"with exit code {code}"
        raise DataError(
            f"a process ended {how}, perhaps because the memory is full. Finished shards are kept: run the same "
            "command again to continue, with fewer --processes if there is too little memory"
        ) from None


def _serve(connection: Connection, job: Job) -> None:
    """Do what is asked for, until the other side closes the connection or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    try:
        encode = PassageEncoder(job)
        while True:
            number, unit = connection.recv()
            for progress in run_unit(job, encode, number, unit):
                connection.send(progress)
            connection.send(None)
    except AxonError as error:
        connection.send(type(error)(str(error)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
