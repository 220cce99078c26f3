"""Measure the time budgets of plugins: start-up, listing, and a cached look-up.

    python benchmarks/registry.py [--runs 15]

Each command runs in a fresh interpreter on a warm disk, beside plugins that are laid out as pip installs them and
raise when imported. Figures are medians; the spread is the interquartile range.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Callable
from pathlib import Path

CLI = "import sys; from axon_core.cli import main; sys.exit(main({!r}))"


def install(folder: Path, plugins: int) -> None:
    """Write `plugins` distributions with five entries each."""
    for i in range(plugins):
        name = f"bench_plugin_{i}"
        info = folder / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        # Real metadata is about this long, most of it the README.
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\n\n{'A description. ' * 300}"
        )
        (info / "RECORD").write_text(f"{name}/__init__.py,,\n")
        groups = ("attention", "norm", "model", "trainer", "paper")
        (info / "entry_points.txt").write_text("".join(f"[axon.v1.{g}]\n{g}{i} = {name}:Thing\n\n" for g in groups))
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise RuntimeError('imported')")


def milliseconds(code: str, folder: Path, runs: int) -> list[float]:
    """Time `code` in fresh interpreters, after one run that warms the disk."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    times: list[float] = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL, check=True)
        times.append((time.perf_counter() - start) * 1e3)
    return times[1:]


def per_look_up(mapping: object) -> float:
    """Nanoseconds of `mapping["thing"]`: the fastest of many short series, which other processes disturb least."""
    series = timeit.repeat("m['thing']", "m = mapping", globals={"mapping": mapping}, number=100_000, repeat=100)
    return min(series) / 100_000 * 1e9


def registry_and_dict() -> tuple[object, object]:
    from axon_core import config
    from axon_core.registry.registry import Registry

    class Thing:
        class Config(config.Config): ...

    registry = Registry("bench", Thing)
    registry.register("thing", Thing)
    return registry, dict(registry)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    print(f"{'what':44} {'median':>9} {'spread':>8} {'budget':>8}")

    def report(what: str, times: list[float], budget: float, bare: float = 0.0) -> None:
        low, middle, high = statistics.quantiles(times, n=4)
        print(f"{what:44} {middle - bare:6.1f} ms {high - low:5.1f} ms {budget:5.0f} ms", flush=True)

    with tempfile.TemporaryDirectory() as few, tempfile.TemporaryDirectory() as many:
        install(Path(few), 12)
        install(Path(many), 500)
        measure: Callable[..., list[float]] = lambda code, folder=few: milliseconds(code, Path(folder), runs)  # noqa: E731
        bare = statistics.median(measure("pass"))
        print(f"{'bare python':44} {bare:6.1f} ms")
        report("import axon_core, over bare python", measure("import axon_core"), 60, bare)
        report("axon --help, 12 plugins", measure(CLI.format(["--help"])), 250)
        report("axon list, 12 plugins", measure(CLI.format(["list"])), 250)
        report("axon list, 500 plugins", measure(CLI.format(["list"]), many), 500)

    registry, plain = registry_and_dict()
    ours, theirs = per_look_up(registry), per_look_up(plain)
    print(f"cached look-up: registry {ours:.0f} ns, dict {theirs:.0f} ns: {ours / theirs:.1f} times (budget 5)")


if __name__ == "__main__":
    main()
