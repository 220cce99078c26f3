"""Where to compute."""

from __future__ import annotations

import torch

__all__ = ["available"]


def available(device: str) -> str:
    """Return `device`, in PyTorch's terms: `cpu`, `cuda`, `cuda:1`.

    Raises:
        ValueError: PyTorch has no such device here, or it holds no numbers.
    """
    try:
        if torch.empty(0, device=device).is_meta:
            raise RuntimeError("it holds no numbers")
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device must be one that PyTorch has here, got {device!r} ({reason})") from None
    return device
