"""Joining the processes that torchrun started, and ending with them."""

from __future__ import annotations

import logging
import os
import signal
import socket
import stat
import threading
import warnings
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from itertools import count
from types import FrameType

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.distributed_c10d import _set_pg_timeout  # pyright: ignore[reportPrivateUsage]
from torch.distributed.rendezvous import rendezvous

from axon_core.errors import UsageError
from axon_core.processes import PeerError
from axon_core.training.parallel.peers import Peers

__all__ = ["joined", "limit_waiting", "local_rank", "note_step", "recall", "remember"]

_GRACE = 60.0  # seconds in which processes that torchrun has left alone may save
_PATIENCE = 5.0  # seconds for a process to notice that the others have ended
_log = logging.getLogger("axon")
_meetings = count()  # of these processes, which may join several times: all of them alike
_peers: list[Peers] = []  # of the group that `joined` made, while there is one: at most one


def local_rank() -> int:
    """Return this process's number on its machine, as torchrun counts; 0 for one that it did not start."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def joined(timeout: float = 600.0) -> Generator[None]:
    """Within the block, be one of the processes that torchrun started; any other process stays by itself.

    The group is nccl on GPUs, one device for each process, and gloo on CPUs; small messages take gloo on both. Inside
    an outer `joined`, only the time-out changes; in a group that the caller made, nothing happens. If the block fails
    in one process, all of them end, and one has the first cause. Warnings are those of the first process.

    `fit` does this by itself. A script that uses what is sharded afterwards, to evaluate or to save a model, does it
    within a `joined` of its own.

    Args:
        timeout: seconds after which a process that waits for another gives up.

    Raises:
        UsageError: the environment does not say where the others are, or the port is in use.
        PeerError: another process failed; or one is lost, or does not answer in time.
        KeyboardInterrupt: this process is told to end, as by torchrun.
    """
    if "RANK" not in os.environ or dist.is_initialized():
        if _peers:
            limit_waiting(timeout)
        yield
        return
    with ExitStack() as stack:
        stack.enter_context(_watched())
        store, rank, world = _met(timeout)
        sockets = _sockets()
        meeting = f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{next(_meetings)}"
        peers = Peers(store, rank, world, meeting)
        _peers.append(peers)
        stack.callback(_peers.clear)
        stack.enter_context(_told_to_end())
        if rank:
            stack.enter_context(_quiet())
        try:
            if (
                peers.recall("final") is not None
            ):  # torchrun started them again, but the reason of the end is still there
                raise PeerError("the training has ended")
            with _ended_though_it_waits():
                dist.init_process_group(
                    _backend(),
                    store=PrefixStore(meeting, store),  # those of an earlier one had other addresses
                    rank=rank,
                    world_size=world,
                    timeout=timedelta(seconds=timeout),
                )
            yield
            dist.destroy_process_group()
        except BaseException as error:
            for number in (signal.SIGTERM, signal.SIGHUP):  # torchrun sends it when the first process has ended
                _on(number, signal.SIG_IGN)
            ending = peers.end(error, lambda: _disconnect(_sockets() - sockets))
            if ending is error:
                raise
            raise ending from error


def note_step(step: int) -> None:
    """Let the other processes know how many steps this one has done, for their messages."""
    for peers in _peers:
        peers.note_step(step)


def remember(name: str, value: str) -> None:
    """Keep a text for the processes that torchrun starts if these are killed; nothing where it started none."""
    for peers in _peers:
        peers.remember(name, value)


def recall(name: str) -> str | None:
    """Return what these processes, or those before them, were to `remember`."""
    return _peers[0].recall(name) if _peers else None


def limit_waiting(timeout: float, *groups: dist.ProcessGroup) -> None:
    """Let processes that wait for others, in groups or in the one of all, give up after so many seconds."""
    for group in groups or (None,):
        _set_pg_timeout(timedelta(seconds=timeout), group)


def _met(timeout: float) -> tuple[Store, int, int]:
    """Return the store of all processes, this one's number, and how many they are."""
    try:
        store, rank, world = next(iter(rendezvous("env://", timeout=timedelta(seconds=timeout))))
    except ValueError as error:
        raise UsageError(
            f"RANK is set, but the processes cannot find each other: {error}. Start them with torchrun, or unset RANK"
        ) from None
    except dist.DistNetworkError as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        if "EADDRINUSE" in str(error):
            raise UsageError(
                f"{where} is in use, so the processes cannot meet there: set another MASTER_PORT"
            ) from None
        raise PeerError(f"process {os.environ['RANK']} does not reach the others at {where}: {error}") from None
    return store, rank, world


def _backend() -> str:
    """Return the back ends, and take this process's GPU where each on this machine has one."""
    if torch.cuda.is_available() and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) <= torch.cuda.device_count():
        torch.cuda.set_device(local_rank())
        return "cpu:gloo,cuda:nccl"
    return "gloo"


def _sockets() -> set[int]:
    """Return the open sockets of this process."""
    found: set[int] = set()
    for name in os.listdir("/dev/fd"):
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                found.add(int(name))
    return found


def _disconnect(sockets: set[int]) -> None:
    """End the connections on sockets, but those to the store.

    The collectives in which others wait for this process fail then. `destroy_process_group` closes nothing as long as
    anything refers to the group, as DDP does, or a traceback; and with nccl it waits.
    """
    store = int(os.environ["MASTER_PORT"])
    for number in sockets:
        with suppress(OSError), socket.socket(fileno=os.dup(number)) as connection:
            if connection.family in (socket.AF_INET, socket.AF_INET6):
                if store not in (connection.getsockname()[1], connection.getpeername()[1]):
                    connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def _quiet() -> Generator[None]:
    """Within the block, warnings are not shown."""

    def nothing(record: logging.LogRecord) -> bool:
        return False

    _log.addFilter(nothing)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        _log.removeFilter(nothing)


@contextmanager
def _told_to_end() -> Generator[None]:
    """Within the block, end when told to, as on Ctrl-C."""

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: _on(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            _on(number, handler)


@contextmanager
def _ended_though_it_waits() -> Generator[None]:
    """Within the block, end soon when told to, though this process waits in C++ for one that may be gone.

    Python's handlers run only when the wait is over, which may take as long as the time-out.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    over = threading.Event()

    def watch() -> None:
        while told := reading.recv(1):
            if told[0] in (signal.SIGTERM, signal.SIGHUP) and not over.wait(_PATIENCE):
                os.kill(os.getpid(), signal.SIGKILL)

    reading, writing = socket.socketpair()
    writing.setblocking(False)
    before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        writing.close()


def _on(number: int, handler: signal._HANDLER) -> signal._HANDLER:  # pyright: ignore[reportPrivateUsage]
    """Set what a signal does, and return what it did; only the main thread can, and elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(number) == signal.SIG_IGN:
        return None
    return signal.signal(number, handler) if handler is not None else None


@contextmanager
def _watched() -> Generator[None]:
    """Within the block, end if torchrun is gone, or if the others have ended and this process does not notice it."""
    over = threading.Event()
    threading.Thread(target=_watch, args=(os.getppid(), over), daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _watch(parent: int, over: threading.Event) -> None:
    started = "TORCHELASTIC_RUN_ID" in os.environ  # by torchrun
    while not over.wait(1.0):
        if any(peers.is_told() for peers in _peers) and not over.wait(_PATIENCE):
            os.kill(os.getpid(), signal.SIGKILL)
        if started and os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)
            if not over.wait(_GRACE):
                os.kill(os.getpid(), signal.SIGKILL)
