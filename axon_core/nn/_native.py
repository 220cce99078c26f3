"""The operators of this package that are written in C++, compiled when they are first needed."""

from __future__ import annotations

import torch

__all__ = ["compile_kernels", "lanes", "library"]

library = torch.library.Library("axon", "FRAGMENT")
"""Where operators are defined, each with a version in plain torch that runs where there is no C++ compiler."""


def compile_kernels() -> None:
    """Compile and load the kernels, once."""


def lanes() -> int:
    """Return how many float32 numbers a register of this processor holds, or 8 without kernels."""
    return 8
