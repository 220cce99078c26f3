"""What adapters in PEFT's files have in common, both ways."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["CONFIG", "ENDS", "PREFIX", "WEIGHTS", "A", "B", "M", "Moved", "commonest"]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What the names of all tensors begin with."""
ENDS = A, B, M = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
"""What they end with."""


@dataclass(frozen=True)
class Moved:
    """What was written.

    Attributes:
        base: the folder of the model that the adapter belongs to.
        maps: how many matrices it adapts.
        parameters: how many numbers it has.
    """

    base: Path
    maps: int
    parameters: int


def commonest(values: Iterable[Any]) -> Any:
    """Return the value that is there most often."""
    return Counter(values).most_common(1)[0][0]
