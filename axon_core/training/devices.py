"""Where to compute."""

from __future__ import annotations

import os
from functools import cache

import torch
from jaxtyping import Shaped
from torch import Tensor

from axon_core.errors import first_line

__all__ = ["AUTO", "choose_device", "describe_device", "multiplies_bf16", "to_device", "works_apart"]

AUTO = "auto"
"""The best available device: `cuda`, else `mps` if it works, else `cpu`."""


def choose_device(device: str = AUTO) -> str:
    """Return a device that works here, in PyTorch's terms: `cpu`, `cuda`, `cuda:1`, `mps`.

    `auto` becomes `cuda` if a GPU works, else `mps` if it has float64, in which probabilities are computed, else `cpu`.
    In a process that torchrun started, `cuda` is the GPU that has the process's number on its machine.

    Raises:
        ValueError: PyTorch has no such device here, it holds no numbers, or it belongs to another process.
    """
    if device == AUTO:
        device = next((kind for kind in ("cuda", "mps") if _is_there(kind) and _works(kind)), "cpu")
        if device != "cuda" or "LOCAL_RANK" not in os.environ:
            return device
    if device.partition(":")[0] == "cuda" and "LOCAL_RANK" in os.environ:
        device = _own_gpu(device, int(os.environ["LOCAL_RANK"]))
    try:
        if torch.empty(0, device=device).is_meta:
            raise RuntimeError("it stores no numbers")
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
        raise ValueError(
            f"device must be auto or a device that PyTorch finds here, got {device!r} ({reason})"
        ) from None
    return device


def _own_gpu(device: str, number: int) -> str:
    """Return the GPU of a process by its number on the machine; `device` names it, or none in particular."""
    if torch.cuda.is_available() and number >= torch.cuda.device_count():
        raise ValueError(
            f"each process needs a GPU of its own, and process {number} of this machine finds only "
            f"{torch.cuda.device_count()}: start fewer processes, or choose the device cpu"
        )
    if device not in ("cuda", mine := f"cuda:{number}"):
        raise ValueError(f"each process has a GPU of its own, process {number} of this machine {mine}, not {device}")
    return mine


def describe_device(device: str) -> str:
    """Return a device in words: `cpu`, `cuda (NVIDIA H200)`."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if torch.device(device).type == "cuda" else device


@cache
def multiplies_bf16(device: str) -> bool:
    """Return whether a device has instructions for matrix products in bfloat16.

    Without them PyTorch computes such products many times slower than in float32, as on CPUs that have only AVX2.
    """
    match torch.device(device).type:
        case "cuda":
            return torch.cuda.get_device_capability(device) >= (8, 0)
        case "cpu":
            return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())
        case _:
            return False


def works_apart(device: str | torch.device) -> bool:
    """Return whether a device computes what it was given while Python continues: every one but the CPU."""
    return torch.device(device).type != "cpu"


def to_device(rows: Shaped[Tensor, "b ..."], device: str, dtype: torch.dtype | None = None) -> Shaped[Tensor, "b ..."]:
    """Return the rows on a device, real numbers in `dtype`, which is by default their own.

    To a GPU they go from pinned memory, so that Python does not wait for the copy.
    """
    if dtype is not None and rows.is_floating_point():
        rows = rows.to(dtype)
    if torch.device(device).type == "cuda" and rows.device.type == "cpu":
        return rows.pin_memory().to(device, non_blocking=True)
    return rows.to(device)


def _is_there(kind: str) -> bool:
    return torch.cuda.is_available() if kind == "cuda" else torch.backends.mps.is_available()


def _works(kind: str) -> bool:
    """Return whether a device adds float64 numbers: a GPU too old for this PyTorch is listed, but does not."""
    try:
        return (torch.ones(2, device=kind, dtype=torch.float64) + 1).sum().item() == 4
    except (RuntimeError, TypeError):  # MPS raises a TypeError for float64
        return False
