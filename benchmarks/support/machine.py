"""What a measurement uses of the machine, and what others use of it meanwhile (Linux)."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch


class Others:
    """How much of the processors' time programs outside this one's process group take: what disturbs a measurement.

    Args:
        groups: further process groups that do not count as others.
    """

    def __init__(self, *groups: int) -> None:
        self._groups = {os.getpgrp(), *groups}
        self._begun = self._seconds()

    def share(self) -> float:
        """Return the share of all processors' time that others took since the beginning."""
        passed, busy, own = (now - then for now, then in zip(self._seconds(), self._begun, strict=True))
        return max(0.0, busy - own) / (passed * (os.cpu_count() or 1))

    def _seconds(self) -> tuple[float, float, float]:
        """Return the time, and how long the processors have worked in all, and for the process groups."""
        user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9])
        own = 0
        for process in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = process.read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            if int(fields[2]) in self._groups:
                own += sum(map(int, fields[11:15]))  # its own time, and that of its children who have ended
        ticks = os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), (user + nice + system + sum(interrupts)) / ticks, own / ticks


def reset_peak_memory(device: str) -> None:
    """Let `peak_memory` count from now on."""
    if device == "cpu":
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    else:
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: str) -> int:
    """Return the most bytes since `reset_peak_memory`: resident ones of this process, or allocated ones of a GPU."""
    return (
        _kibibytes("/proc/self/status", "VmHWM") * 1024 if device == "cpu" else torch.cuda.max_memory_allocated(device)
    )


def resident_memory() -> int:
    """Return the bytes of this process that are in memory."""
    return _kibibytes("/proc/self/status", "VmRSS") * 1024


def available_memory() -> int:
    """Return how many bytes new processes may take."""
    return _kibibytes("/proc/meminfo", "MemAvailable") * 1024


def _kibibytes(path: str, field: str) -> int:
    with open(path) as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field))
