"""Activations of feed-forward layers."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from axon_core.nn._native import compile_kernels, library
from axon_core.precision import widen

__all__ = ["GatedSiLU", "gated_silu"]


class GatedSiLU(nn.Module):
    """The activation of SwiGLU, `(... d), (... d) -> (... d)`: silu(gate) ⊙ up, with silu(x) = x / (1 + e^−x).

    A packed model computes it with `gated_silu`. Source: arXiv 2002.05202, Section 2, Eq. 6.
    """

    def forward(self, gate: Float[Tensor, "... d"], up: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Return silu(gate) ⊙ up."""
        return silu(gate) * up


class PackedGatedSiLU(GatedSiLU):
    """`GatedSiLU` whose rows do not depend on their number."""

    def forward(self, gate: Float[Tensor, "... d"], up: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Return silu(gate) ⊙ up."""
        return gated_silu(gate, up)


def gated_silu(gate: Float[Tensor, "... d"], up: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
    """Return silu(gate) ⊙ up, with the same bits for a row however many rows there are.

    Source: arXiv 2002.05202, Section 2, Eq. 6.

    On a CPU, `torch.nn.functional.silu`, `gelu` and `sigmoid` compute the last few numbers of a thread's share in
    another way than the others, and how many these are depends on the number of rows.
    """
    compile_kernels()
    if gate.device.type == "cpu" and gate.dtype == up.dtype and gate.dtype in (torch.float32, torch.bfloat16):
        d = gate.shape[-1]
        return torch.ops.axon.gated_silu(gate.reshape(-1, d), up.reshape(-1, d)).view(gate.shape)
    return _plain(gate, up)


def _plain(gate: Float[Tensor, "... d"], up: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
    """`gated_silu` in plain torch, of operations that treat all numbers alike."""
    wide = widen(gate)
    return (wide / (1 + torch.exp(-wide))).to(gate.dtype) * up


library.define("gated_silu(Tensor gate, Tensor up) -> Tensor")
library.impl("gated_silu", _plain, "CompositeExplicitAutograd")


def _shape(gate: Tensor, up: Tensor) -> Tensor:
    return gate.new_empty(gate.shape)


torch.library.register_fake("axon::gated_silu", _shape, lib=library)
