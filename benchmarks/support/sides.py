"""Axon beside one other library: the memory that work adds, and the figures of both as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from support.machine import peak_memory, reset_peak_memory


def memory_of(work: Callable[[], object]) -> int:
    """Do the work twice, and return the bytes that it adds to this process."""
    reset_peak_memory("cpu")
    before = peak_memory("cpu")
    for _ in range(2):
        work()
    return peak_memory("cpu") - before


def table(figures: Mapping[str, Mapping[str, float]], peer: str) -> str:
    """Return the figures as text: seconds or megabytes, and how many times the peer's Axon's go into."""
    ratio = f"{peer} / axon"
    lines = [f"{'':26}{'axon':>10}{peer:>12}{ratio:>18}"]
    for name, found in figures.items():
        scale, unit = (1e-6, "MB") if "memory" in name else (1.0, "s")
        axon, other = found["axon"] * scale, found[peer] * scale
        lines.append(f"{f'{name}, {unit}':26}{axon:10.3f}{other:12.3f}{other / max(axon, 1e-9):18.2f}")
    return "\n".join(lines)
