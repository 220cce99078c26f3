"""Options that run a command in several processes of this machine, with torchrun's launcher."""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from axon_core.cli.output import echo
from axon_core.errors import UsageError

__all__ = ["processes_options"]


_SHUTDOWN = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
_OWN = ("nproc", "max_restarts", "port")

C = TypeVar("C", bound=Callable[..., Any])


def processes_options(command: C) -> C:
    """Give a command the options `--nproc`, `--max-restarts` and `--port`, which run it in several processes."""

    @functools.wraps(command)
    def wrapped(nproc: int | None, max_restarts: int, port: int | None, **values: Any) -> Any:
        if nproc is None:
            if max_restarts or port is not None:
                raise UsageError(f"{'--max-restarts' if max_restarts else '--port'} needs --nproc")
            return command(**values)
        if values.get("dry_run"):
            raise UsageError("--dry-run starts no processes; leave out --nproc")
        return _launch(_words(click.get_current_context()), nproc, max_restarts, port)

    options = [
        click.option("--nproc", type=click.IntRange(min=1), help="Train in this many processes, one for each GPU."),
        click.option(
            "--max-restarts",
            type=click.IntRange(min=0),
            default=0,
            help="With --nproc: if a process is lost, start all again from the last checkpoint, at most so often.",
        ),
        click.option(
            "--port", type=click.IntRange(1, 65535), help="With --nproc: where they meet; by default a free one."
        ),
    ]
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped  # pyright: ignore[reportReturnType]


def _cores() -> int:
    """Return how many cores this process may use: of a shared machine perhaps a few."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _words(context: click.Context) -> list[str]:
    """Return the command line again, without the options that are the launcher's."""
    words = ["--debug"] * bool((context.obj or {}).get("debug")) + [context.command.name or ""]
    last: list[str] = []
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if value is None or parameter.name in _OWN:
            continue
        if isinstance(parameter, click.Argument):
            last += ["--", str(value)]
        elif isinstance(parameter, click.Option) and parameter.is_flag:
            words += [parameter.opts[0]] * bool(value)
        else:
            values: Iterable[Any] = value if parameter.multiple else [value]  # pyright: ignore[reportAttributeAccessIssue]
            words += [f"{parameter.opts[0]}={one}" for one in values]
    return [*words, *last]


def _launch(words: list[str], nproc: int, max_restarts: int, port: int | None) -> int:
    """Run `axon` with these words in so many processes, and return the exit code that they agree on.

    Raises:
        UsageError: the port is in use.
    """
    from torch.distributed import DistNetworkError
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable()  # the processes say what happened
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // nproc)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=str(uuid.uuid4()),
        rdzv_backend="static" if port else "c10d",
        rdzv_endpoint=f"localhost:{port or 0}",
        rdzv_configs={"rank": 0} if port else {},
        max_restarts=max_restarts,
        # After Ctrl-C they finish their step and save. A second Ctrl-C ends them at once.
        shutdown_timeout=None if _SHUTDOWN in os.environ else 300,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "axon_core", *words)
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        if (code := next((code for code in codes if code > 0), None)) is not None:
            return code
        # Those that it ended after the first have SIGTERM.
        failures = sorted(error.failures.items(), key=lambda item: item[1].signal_name() == "SIGTERM")
        number, failure = failures[0]
        echo(f"Error: process {number} was ended by {failure.signal_name()}, and the others with it", err=True)
        return 1
    except SignalException:
        return 130
    except DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise UsageError(f"port {port} is in use: choose another --port, or leave it out for a free one") from None
    finally:
        logging.disable(logging.NOTSET)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return 0
