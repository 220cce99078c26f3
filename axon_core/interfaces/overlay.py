"""What a model adds to a saved one, whose weights stay in its own folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Overlay"]


@dataclass(frozen=True)
class Overlay:
    """What a model (`Model.overlay`) adds to a saved one: only that is trained, and saved with the other's checksum.

    Attributes:
        section: the registered `RecipeSection` that makes the model's weights of the saved ones.
        options: what that section was built with.
        base: the folder of the saved model; None if the model was new, so that its weights are saved too.
        names: the tensors of its own, as they are called in the model.
    """

    section: str
    options: Mapping[str, Any]
    base: Path | None
    names: frozenset[str]
