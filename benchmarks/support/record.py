"""What a measurement was made on, and where it is kept."""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent.parent / "results"


def facts(device: str, threads: int) -> dict[str, Any]:
    """Return the date, the hardware and the versions of everything that is measured."""
    versions = {"python": platform.python_version()}
    for name in (
        "torch",
        "axon-core",
        "axon-xllama",
        "transformers",
        "accelerate",
        "peft",
        "bitsandbytes",
        "datasets",
        "llama-cpp-python",
        "gguf",
    ):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    hardware: dict[str, Any] = {"cpu": _cpu(), "cores": os.cpu_count(), "threads": threads, "memory": memory}
    if device != "cpu":
        properties = torch.cuda.get_device_properties(device)
        hardware |= {"gpu": properties.name, "gpu_memory": properties.total_memory, "cuda": torch.version.cuda}
    return {"date": datetime.now(UTC).date().isoformat(), "hardware": hardware, "versions": versions}


def save(name: str, results: dict[str, Any]) -> Path:
    """Write `results` as `results/<name>.json` beside the benchmarks."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return path


def say(text: str) -> None:
    """Tell how far it has come, on the standard error."""
    print(text, file=sys.stderr, flush=True)


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
