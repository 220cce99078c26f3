"""The memory of a process and of those that it started, while they run (Linux)."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path


def run_measured(command: list[str], **options: object) -> tuple[float, int, str]:
    """Run a command, and return its seconds, the most bytes that all its processes held at once, and what it printed.

    A page that several of them share counts once (proportional set size); it is looked at twenty times a second.

    Raises:
        RuntimeError: it fails.
    """
    begun, peak = time.perf_counter(), 0
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **options
    )
    while process.poll() is None:
        peak = max(peak, held(process.pid))
        time.sleep(0.05)
    seconds = time.perf_counter() - begun
    out, err = process.communicate()
    if process.returncode:
        raise RuntimeError(err[-2000:])
    return seconds, peak, out


def held(group: int) -> int:
    """Return the bytes of all processes of a group."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[2]) == group:
                lines = (stat.parent / "smaps_rollup").read_text().splitlines()
                total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
        except (OSError, StopIteration):  # it has ended
            continue
    return total
