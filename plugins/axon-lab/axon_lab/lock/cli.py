"""`axon lock`."""

from __future__ import annotations

from pathlib import Path

import click

from axon_core.checkpoint import write_text
from axon_core.cli import echo, json_option, print_json
from axon_core.registry import LOCK, EnvironmentLock, installed_plugins, lock_environment, read_lock
from axon_core.training import RunFolder
from axon_lab.lock.writing import late_lock, lock_text

__all__ = ["command"]


@click.command("lock")
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the lock to this file.")
@json_option
def command(run: Path | None, out: Path | None, as_json: bool) -> None:
    """Say which distributions the run in the folder RUN was made with: versions, and digests of their files.

    A run gets its lock when it begins. If it has none, one is written now, unless the versions in its run.json differ
    from those that are installed. Without RUN, the installed plugins are listed as a file for administrators has them.
    """
    if run is None:
        lock, written = lock_environment((), installed_plugins(), at_start=False), out
    else:
        folder = RunFolder.open(run)
        there = folder.path / LOCK
        lock, written = (read_lock(there), out) if there.exists() else (late_lock(folder), out or there)
    if written is not None:
        write_text(written, lock_text(lock))
    if as_json:
        print_json(lock.model_dump(mode="json"))
    elif run is None:
        echo("\n".join(["[plugins]", *(f'{each.name} = "{each.files}"' for each in lock.distributions)]))
    else:
        _show(lock)
    if written is not None:
        echo(f"written to {written}", err=True)


def _show(lock: EnvironmentLock) -> None:
    when = "when the run began" if lock.at_start else "after the run began, when the versions in its run.json agreed"
    echo(f"Python {lock.python}; written {when}")
    echo("\n".join(f"{each.name} {each.version}  {each.files}" for each in lock.distributions))
    echo("\n".join(f"{each.name} {each.version}" for each in lock.libraries))
    if lock.by_hand:
        echo(f"registered by hand, and in no distribution: {', '.join(lock.by_hand)}")
