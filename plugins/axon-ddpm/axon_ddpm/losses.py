"""The losses, each a pure function that returns one number per picture."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from axon_core import widen
from axon_ddpm.parameterisation import Parameterisation, mixture
from axon_ddpm.process import Process, extract

__all__ = ["bound_term", "discretised_log_likelihood", "min_snr_weight", "normal_kl", "prior_term", "squared_error"]


def squared_error(output: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """Return the mean over each picture of (output − target)²; for the noise it is L_simple (2006.11239, Eq. 14)."""
    return (widen(output) - target).square().flatten(1).mean(1)


def min_snr_weight(
    kind: Parameterisation,
    process: Process,
    t: Int[Tensor, " b"],
    gamma: float = 5.0,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, " b"]:
    """Return the weight min(snr, γ) of the squared error of x_0, as a weight on the squared error of the output.

    An output of this kind moves by (p − q a / s) times as much as x_0, which gives min(snr, γ)/snr for ε, min(snr, γ)
    for x_0, and min(snr, γ)/(snr + 1) for v. The result is in `dtype`.

    Source: arXiv 2303.09556.
    """
    p, q = mixture(kind, process)
    moves = p - q * process.signal / process.noise
    return extract(process.snr.clamp(max=gamma) / moves.square(), t, dtype).flatten()


def normal_kl(
    mean: Float[Tensor, ...],
    log_variance: Float[Tensor, ...],
    other_mean: Float[Tensor, ...],
    other_log_variance: Float[Tensor, ...],
) -> Float[Tensor, ...]:
    """Return KL(N(mean, e^log_variance) ‖ N(other_mean, e^other_log_variance)) of each element, in nats."""
    difference = log_variance - other_log_variance
    return 0.5 * (difference.exp() - 1 - difference + (mean - other_mean).square() * (-other_log_variance).exp())


def discretised_log_likelihood(
    x: Float[Tensor, ...],
    mean: Float[Tensor, ...],
    log_variance: Float[Tensor, ...],
    levels: int = 256,
) -> Float[Tensor, ...]:
    """Return log P of each element of `x` under a normal distribution cut into `levels` bins over [−1, 1], in nats.

    A bin extends 1 / (levels − 1) to either side; the first and the last are open-ended (arXiv 2006.11239, Eq. 13).
    """
    half = 1 / (levels - 1)
    inverse = (-0.5 * log_variance).exp()
    upper, lower = (x - mean + half) * inverse, (x - mean - half) * inverse
    # Above the mean both ends of a bin have a CDF close to 1, where float32 cannot tell them apart: mirror them.
    flip = (x > mean) & (x.abs() < 1 - half)
    upper, lower = torch.where(flip, -lower, upper), torch.where(flip, -upper, lower)
    inside = torch.log((torch.special.ndtr(upper) - torch.special.ndtr(lower)).clamp(min=1e-12))
    first, last = torch.special.log_ndtr(upper), torch.special.log_ndtr(-lower)
    return torch.where(x < -1 + half, first, torch.where(x > 1 - half, last, inside))


def bound_term(
    process: Process,
    x0: Float[Tensor, "b c h w"],
    x_t: Float[Tensor, "b c h w"],
    t: Int[Tensor, " b"],
    mean: Float[Tensor, "b c h w"],
    log_variance: Float[Tensor, "b _ _ _"],
    levels: int = 256,
) -> Float[Tensor, " b"]:
    """Return the term of the variational bound at t, in bits per dimension.

    KL(q(x_{t−1} | x_t, x_0) ‖ p(x_{t−1} | x_t)), or −log p(x_0 | x_1) at t = 0 (arXiv 2006.11239, Eq. 5).
    """
    log_variance = log_variance.expand_as(mean)
    small = extract(process.log_variance_small, t, x0.dtype)
    kl = normal_kl(process.posterior_mean(x0, x_t, t), small, mean, log_variance)
    likelihood = discretised_log_likelihood(x0, mean, log_variance, levels)
    nats = torch.where((t == 0)[:, None, None, None], -likelihood, kl)
    return nats.flatten(1).mean(1) / math.log(2)


def prior_term(process: Process, x0: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """Return KL(q(x_T | x_0) ‖ N(0, 1)), the bound's term without a model, in bits per dimension.

    It is L_T of arXiv 2006.11239, Eq. 5.
    """
    last = process.alphas_bar[-1].item()
    log_variance = torch.full_like(x0, math.log1p(-last))
    nats = normal_kl(math.sqrt(last) * x0, log_variance, torch.zeros_like(x0), torch.zeros_like(x0))
    return nats.flatten(1).mean(1) / math.log(2)
