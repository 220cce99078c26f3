"""The forward process q: its tables, how it diffuses a picture, and its posterior. Pure arithmetic, no model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from axon_core import ContractError, UsageError, wide_dtype

__all__ = ["SPACINGS", "Process", "Spacing", "extract", "spaced"]

Spacing = Literal["trailing", "leading", "linspace", "log_snr", "middle"]

_LEAST = 4e-5  # the signal-to-noise ratio at the end of the paper's chain: anything below it is only noise


class Process:
    """The chain q(x_t | x_{t−1}) = N(√(1 − β_t) x_{t−1}, β_t), and its tables in float64 (arXiv 2006.11239, Section 2).

    Index t = 0 means diffused once; "before" it is the clean picture, for which ᾱ = 1.

    Attributes:
        timesteps: what a model is given instead of the index: the places in the chain it was trained on.
        betas: β.
        alphas_bar: ᾱ_t = Π_{s ≤ t} (1 − β_s).
        alphas_bar_before: ᾱ_{t−1}.
        signal: √ᾱ, the share of the picture.
        noise: √(1 − ᾱ), the share of the noise.
        posterior_x0: factor of x_0 in the posterior's mean, β √ᾱ_{t−1} / (1 − ᾱ).
        posterior_xt: factor of x_t in the posterior's mean, √α (1 − ᾱ_{t−1}) / (1 − ᾱ).
        posterior_variance: β̃ = β (1 − ᾱ_{t−1}) / (1 − ᾱ), which is 0 at t = 0.

    Raises:
        ContractError: a variance is not between 0 and 1.
    """

    def __init__(self, betas: Float64[Tensor, " t"], timesteps: Int[Tensor, " t"] | None = None) -> None:
        if betas.ndim != 1 or not len(betas) or not bool(((betas > 0) & (betas < 1)).all()):
            raise ContractError(
                f"the variances of a noise schedule must be one row of numbers between 0 and 1, got shape "
                f"{tuple(betas.shape)} from {betas.min().item() if betas.numel() else '-'} to "
                f"{betas.max().item() if betas.numel() else '-'}"
            )
        self.betas = betas = betas.double()
        self.timesteps = torch.arange(len(betas)) if timesteps is None else timesteps
        self.alphas_bar = (1 - betas).cumprod(0)
        self.alphas_bar_before = before = torch.cat((torch.ones_like(betas[:1]), self.alphas_bar[:-1]))
        rest = 1 - self.alphas_bar
        self.signal, self.noise = self.alphas_bar.sqrt(), rest.sqrt()
        self.posterior_x0 = betas * before.sqrt() / rest
        self.posterior_xt = (1 - betas).sqrt() * (1 - before) / rest
        self.posterior_variance = betas * (1 - before) / rest

    def __len__(self) -> int:
        return len(self.betas)

    def respaced(self, indices: Int[Tensor, " s"]) -> Process:
        """Return the chain through some of the indices, ascending: a process like any other, with β = 1 − ᾱ / ᾱ'.

        ᾱ' is that of the previous index in the list (arXiv 2102.09672, Section 4), not of the index below.
        """
        kept = self.alphas_bar[indices]
        before = torch.cat((torch.ones_like(kept[:1]), kept[:-1]))
        return Process(1 - kept / before, self.timesteps[indices])

    @property
    def snr(self) -> Float64[Tensor, " t"]:
        """Signal-to-noise ratio ᾱ / (1 − ᾱ)."""
        return self.alphas_bar / (1 - self.alphas_bar)

    @property
    def log_variance_small(self) -> Float64[Tensor, " t"]:
        """Log β̃; at t = 0, where that is −∞, the value of t = 1."""
        if len(self) == 1:
            return self.betas.log()
        return torch.cat((self.posterior_variance[1:2], self.posterior_variance[1:])).log()

    @property
    def log_variance_large(self) -> Float64[Tensor, " t"]:
        """Log β; at t = 0, where it only serves the likelihood, that of β̃ at t = 1."""
        return torch.cat((self.log_variance_small[:1], self.betas[1:].log()))

    def diffuse(
        self, x0: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], t: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """Return x_t = √ᾱ x_0 + √(1 − ᾱ) ε (arXiv 2006.11239, Eq. 4)."""
        return extract(self.signal, t, x0.dtype) * x0 + extract(self.noise, t, noise.dtype) * noise

    def corrected(
        self, x0: Float[Tensor, "b c h w"], x_t: Float[Tensor, "b c h w"], t: Int[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """Return a picture that replaces the predicted one, and with it the noise ε = (x_t − √ᾱ x_0) / √(1 − ᾱ).

        Computed from x_t − x_0 because early in the chain, where the divisor is small, the two are nearly equal.
        """
        return x0, (x_t - x0 + extract(1 - self.signal, t, x0.dtype) * x0) / extract(self.noise, t, x0.dtype)

    def posterior_mean(
        self, x0: Float[Tensor, "b c h w"], x_t: Float[Tensor, "b c h w"], t: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """Return the mean μ̃ of q(x_{t−1} | x_t, x_0) (arXiv 2006.11239, Eq. 7)."""
        return extract(self.posterior_x0, t, x0.dtype) * x0 + extract(self.posterior_xt, t, x_t.dtype) * x_t


def extract(
    table: Float64[Tensor, " t"], t: Int[Tensor, " b"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "b 1 1 1"]:
    """Return `table[t]` on the device of `t`, ready to multiply pictures of `dtype`: in float32 at least."""
    # The copy is staged before this returns, so that it may go on beside the work of a GPU.
    return table.to(wide_dtype(dtype)).to(t.device, non_blocking=t.is_cuda)[t][:, None, None, None]


def _strides(n: int, process: Process, scale: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the distinct steps whose log signal-to-noise ratios are nearest to n equidistant ones on a scale."""
    levels, start = process.snr.log(), torch.tensor(math.log(_LEAST), dtype=torch.float64)
    levels, start = scale(levels), scale(torch.maximum(levels[-1], start))
    wanted = torch.linspace(start.item(), levels[0].item(), n, dtype=torch.float64).flip(0)
    nearest, place = (levels - wanted[:, None]).abs().argmin(1), torch.arange(n)
    return (nearest - place).cummax(0).values.clamp(0, len(process) - n) + place


SPACINGS: dict[Spacing, Callable[[int, Process], Tensor]] = {
    "trailing": lambda n, q: len(q) - 1 - (torch.arange(n, dtype=torch.float64) * len(q) / n).round().long().flip(0),
    "leading": lambda n, q: torch.arange(n) * (len(q) // n),
    "linspace": lambda n, q: torch.linspace(len(q) - 1, 0, n, dtype=torch.float64).round().long().flip(0),
    "log_snr": lambda n, q: _strides(n, q, lambda level: level),
    "middle": lambda n, q: _strides(n, q, lambda level: ((level - 2) / 10).atan()),
}
"""Ways to choose n steps of a chain: in equal strides from the last one down, from the first one up, or from end to
end; or, leaving out what is only noise, in equal strides of the log signal-to-noise ratio (arXiv 2206.00927) or of
arctan((log snr − 2) / 10), which are shorter in the middle, where most of a picture is decided."""


def spaced(n: int, process: Process, spacing: Spacing = "trailing") -> Int[Tensor, " n"]:
    """Return which n steps of a process to take, ascending.

    >>> process = Process(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    >>> for spacing in SPACINGS:
    ...     print(spacing, spaced(4, process, spacing).tolist())
    trailing [249, 499, 749, 999]
    leading [0, 250, 500, 750]
    linspace [0, 333, 666, 999]
    log_snr [0, 73, 603, 999]
    middle [0, 57, 454, 999]

    Raises:
        UsageError: n is not between 1 and the length of the process.
    """
    if not 1 <= n <= len(process):
        raise UsageError(f"the number of steps must be between 1 and {len(process)}, the length of the chain, got {n}")
    return SPACINGS[spacing](n, process)
