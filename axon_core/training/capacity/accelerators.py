"""What devices compute, hold and send per second, as their vendors state it."""

from __future__ import annotations

import os
from collections.abc import Mapping

from pydantic import PositiveFloat

from axon_core import config
from axon_core.config import validate
from axon_core.errors import UsageError

__all__ = ["ACCELERATORS", "Accelerator", "find_accelerator"]


class Accelerator(config.Config):
    """One device. Rates are peaks, of dense matrices: vendors often state twice as much, for matrices half of zeros."""

    name: str
    """What the command line calls it."""
    bf16: PositiveFloat | None = None
    """FLOP/s of matrix products in bfloat16 with sums in float32, dense; None if it is not known."""
    fp32: PositiveFloat | None = None
    """FLOP/s in float32, without TF32, which PyTorch does not use for matrix products by default."""
    memory: PositiveFloat
    """Bytes; a GB is 10⁹ bytes."""
    memory_bandwidth: PositiveFloat | None = None
    """Bytes per second between the device and its memory."""
    bandwidth: PositiveFloat | None = None
    """Bytes per second that it sends to devices of its node, in one direction."""
    inter_bandwidth: PositiveFloat | None = None
    """Bytes per second that it sends to other nodes, in one direction, when all devices of its node send."""
    source: str
    """Where the figures are from."""

    def flops(self, precision: str) -> float | None:
        """Return the peak FLOP/s of matrix products in a precision such as `bf16`; None if it is not known."""
        return {"bf16": self.bf16, "fp32": self.fp32}.get(precision)


def _this_machine() -> float:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


_A100 = "NVIDIA A100 Tensor Core GPU data sheet (SXM); DGX A100 data sheet: a 200 Gb/s adapter for each GPU"
_HOPPER = "data sheet (SXM), which states twice the bf16 rate, with sparsity; {} data sheet: 400 Gb/s for each GPU"

ACCELERATORS: Mapping[str, Accelerator] = {
    device.name: device
    for device in (
        Accelerator(
            name="a100-40",
            bf16=312e12,
            fp32=19.5e12,
            memory=40e9,
            memory_bandwidth=1.555e12,
            bandwidth=300e9,
            inter_bandwidth=25e9,
            source=_A100,
        ),
        Accelerator(
            name="a100-80",
            bf16=312e12,
            fp32=19.5e12,
            memory=80e9,
            memory_bandwidth=2.039e12,
            bandwidth=300e9,
            inter_bandwidth=25e9,
            source=_A100,
        ),
        Accelerator(
            name="h100",
            bf16=989.5e12,
            fp32=67e12,
            memory=80e9,
            memory_bandwidth=3.35e12,
            bandwidth=450e9,
            inter_bandwidth=50e9,
            source=f"NVIDIA H100 Tensor Core GPU {_HOPPER.format('DGX H100')}",
        ),
        Accelerator(
            name="h200",
            bf16=989.5e12,
            fp32=67e12,
            memory=141e9,
            memory_bandwidth=4.8e12,
            bandwidth=450e9,
            inter_bandwidth=50e9,
            source=f"NVIDIA H200 Tensor Core GPU {_HOPPER.format('DGX H200')}",
        ),
        Accelerator(
            name="b200",
            bf16=2250e12,
            fp32=80e12,
            memory=180e9,
            memory_bandwidth=8e12,
            bandwidth=900e9,
            inter_bandwidth=50e9,
            source="NVIDIA Blackwell architecture technical brief (HGX B200, dense); DGX B200 data sheet: 1,440 GB of "
            "memory and 400 Gb/s adapters for 8 GPUs",
        ),
        Accelerator(
            name="4090",
            bf16=165.2e12,
            fp32=82.6e12,
            memory=24e9,
            memory_bandwidth=1.008e12,
            bandwidth=32e9,
            source="NVIDIA Ada GPU architecture white paper (GeForce RTX 4090, dense, sums in float32); it has no "
            "NVLink but PCI Express 4.0 with 16 lanes, and its network is not the vendor's to state",
        ),
        Accelerator(name="cpu", memory=_this_machine(), source="the memory of this machine; its rates are not stated"),
    )
}
"""The known devices by name."""


def find_accelerator(name: str | None, **given: float | None) -> Accelerator:
    """Return the device of this name with the `given` figures in place of its own; without a name, only those.

    Args:
        name: a key of `ACCELERATORS`.
        given: `flops` stands for `bf16` and `fp32`; the others are fields of `Accelerator`. None is not given.

    Raises:
        UsageError: there is no device of this name, or neither a name nor a memory is given.
        ConfigError: a figure is not a positive number.
    """
    figures = {field: value for field, value in given.items() if value is not None}
    if (flops := figures.pop("flops", None)) is not None:
        figures |= {"bf16": flops, "fp32": flops}
    if name is None:
        if "memory" not in figures:
            raise UsageError(f"name a device: --device {' or '.join(ACCELERATORS)}; or describe one, at least --memory")
        return validate(Accelerator, {**figures, "name": "the device", "source": "the command line"})
    if name not in ACCELERATORS:
        raise UsageError(
            f"--device must be one of {', '.join(ACCELERATORS)}, got {name!r}; leave it out and describe another with "
            "--flops, --memory, --bandwidth and --inter-bandwidth"
        )
    known = ACCELERATORS[name].model_dump()
    changed = f"{known['source']}; {', '.join(figures)} from the command line" if figures else known["source"]
    return validate(Accelerator, {**known, **figures, "source": changed})
