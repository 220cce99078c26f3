"""The mathematics of proximal policy optimisation, as pure functions of tensors (arXiv 1707.06347)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from axon_core import sum_numbers

__all__ = [
    "adapted_coefficient",
    "clipped_surrogate",
    "clipped_value_loss",
    "gae",
    "k1",
    "k2",
    "k3",
    "whiten",
]


def gae(
    rewards: Float[Tensor, "b t"],
    values: Float[Tensor, "b t"],
    following: Float[Tensor, "b t"],
    ended: Bool[Tensor, "b t"],
    *,
    gamma: float,
    gae_lambda: float,
) -> tuple[Float[Tensor, "b t"], Float[Tensor, "b t"]]:
    """Return generalised advantages A and returns A + V (arXiv 1707.06347, Eq. 11 and 12; arXiv 1506.02438).

        δ_t = r_t + γ V'_t − V_t,   A_t = δ_t + γ λ A_{t+1},   and A_t = δ_t where an episode ends

    Args:
        rewards: r_t, what action t earned.
        values: V_t, the value of the state that action t was taken in.
        following: V'_t, the value of the state after it: 0 where the episode is over, and the state's own value where
            it was only cut off.
        ended: whether action t is the last of its episode, over or cut off.
        gamma: discount γ.
        gae_lambda: λ, between 0 (low variance) and 1 (no bias).
    """
    deltas = rewards + gamma * following - values
    decay = gamma * gae_lambda * (~ended).to(deltas.dtype)
    advantages = torch.empty_like(deltas)
    advantage = torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[1])):
        advantage = deltas[:, t] + decay[:, t] * advantage
        advantages[:, t] = advantage
    return advantages, advantages + values


def clipped_surrogate(
    logprobs: Float[Tensor, ...], old: Float[Tensor, ...], advantages: Float[Tensor, ...], clip: float
) -> tuple[Float[Tensor, ...], Bool[Tensor, ...]]:
    """Return −min(ρ A, clip(ρ, 1 − ε, 1 + ε) A) with ρ = π(a)/π_old(a), and where the clipping takes effect.

    Source: arXiv 1707.06347, Section 3, Eq. 7.
    """
    ratio = (logprobs - old).exp()
    free, clipped = -ratio * advantages, -ratio.clamp(1 - clip, 1 + clip) * advantages
    return torch.maximum(free, clipped), clipped > free


def clipped_value_loss(
    values: Float[Tensor, ...], old: Float[Tensor, ...], returns: Float[Tensor, ...], clip: float
) -> tuple[Float[Tensor, ...], Bool[Tensor, ...]]:
    """Return ½ max((V − R)², (V_clip − R)²), V_clip = clip(V, V_old ± ε), and where the latter is the larger.

    The clipping is not in the paper but in its code (arXiv 2005.12729); with an infinite ε it is ½ (V − R)², as in
    arXiv 1707.06347, Section 5.
    """
    free = (values - returns).square()
    clipped = (values.clamp(old - clip, old + clip) - returns).square()
    return torch.maximum(free, clipped) / 2, clipped > free


def k1(logprobs: Float[Tensor, ...], reference: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """Return log π(a) − log π_ref(a): KL(π ‖ π_ref) without bias, over actions a of π (Schulman, 2020)."""
    return logprobs - reference


def k2(logprobs: Float[Tensor, ...], reference: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """Return ½ (log π(a) − log π_ref(a))²: never negative, and of low variance, but biased (Schulman, 2020)."""
    return (logprobs - reference).square() / 2


def k3(logprobs: Float[Tensor, ...], reference: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """Return ρ − 1 − log ρ with ρ = π_ref(a)/π(a): never negative, and without bias (Schulman, 2020)."""
    log_ratio = reference - logprobs
    return log_ratio.expm1() - log_ratio


def adapted_coefficient(coefficient: float, kl: float, *, target: float, n: int, horizon: float) -> float:
    """Return β (1 + clip(KL / target − 1, ±0.2) n / horizon), so that over `horizon` examples KL approaches its target.

    `kl` is the divergence measured on n examples. Source: arXiv 1909.08593, Section 2.2, in the form of its code.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coefficient * (1 + error * n / horizon)


def whiten(x: Float[Tensor, ...], mask: Bool[Tensor, ...]) -> Float[Tensor, ...]:
    """Return (x − mean) / √(variance + 1e-8) where `mask` is true, and 0 elsewhere.

    Mean and (biased) variance are those of the global batch, over all processes, summed in float64.
    """
    chosen = x[mask].double()
    total = sum_numbers({"n": float(chosen.numel()), "sum": chosen.sum().item()})
    n = max(total["n"], 1.0)
    mean = total["sum"] / n
    variance = sum_numbers({"squares": (chosen - mean).square().sum().item()})["squares"] / n
    return torch.where(mask, (x - mean) * (variance + 1e-8) ** -0.5, 0)
