"""How much reward a divergence from a reference can buy: the optimum, and best-of-n, of known distributions.

A distribution is the rewards of responses with their probabilities under the reference: of all responses if they can be
enumerated, which is exact, or of samples, each with the same probability.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Point", "best_of_n", "optimum", "win_rate"]

Point = tuple[Float[Tensor, "*b"], Float[Tensor, "*b"]]
"""Expected reward, and KL divergence from the reference in nats, for each prompt."""


def optimum(rewards: Float[Tensor, "*b y"], probabilities: Float[Tensor, "*b y"], beta: float) -> Point:
    """Return E[r] and KL of π*(y) = π_ref(y) exp(r(y)/β) / Z, which maximises E[r] − β KL(π ‖ π_ref).

    KL = E[r]/β − log Z (arXiv 2305.18290, Section 4, Eq. 4).
    """
    scores = probabilities.log() + rewards / beta
    log_z = scores.logsumexp(-1)
    reward = ((scores - log_z[..., None]).exp() * rewards).sum(-1)
    return reward, reward / beta - log_z


def best_of_n(rewards: Float[Tensor, "*b y"], probabilities: Float[Tensor, "*b y"], n: int) -> Point:
    """Return E[r] and KL of the best of n independent responses, one of them at random where several are the best.

    With F the distribution function of r under the reference, the best has reward ρ with q(ρ) = F(ρ)ⁿ − F(ρ⁻)ⁿ, and
    KL = Σ_ρ q(ρ) log q(ρ)/p(ρ): within a reward the reference's probabilities keep their proportions.
    """
    order = rewards.argsort(-1)
    rewards, mass = rewards.gather(-1, order), probabilities.gather(-1, order)
    new = torch.ones_like(rewards, dtype=torch.bool)
    new[..., 1:] = rewards.diff(dim=-1) > 0
    level = new.cumsum(-1) - 1
    mass = torch.zeros_like(mass).scatter_add(-1, level, mass)  # of each distinct reward; 0 after the last
    value = torch.zeros_like(rewards).scatter(-1, level, rewards)
    below = mass.cumsum(-1) - mass
    chosen = (below + mass).clamp(0, 1) ** n - below.clamp(0, 1) ** n
    kl = torch.xlogy(chosen, chosen / mass.where(mass > 0, 1)).sum(-1)
    return (chosen * value).sum(-1), kl


def win_rate(ours: Float[Tensor, "b n"], theirs: Float[Tensor, "b m"]) -> Float[Tensor, " b"]:
    """Return how often one of our rewards for a prompt exceeds one of theirs; an equal one counts half."""
    ours, theirs = ours[:, :, None], theirs[:, None, :]
    return ((ours > theirs).float() + (ours == theirs).float() / 2).mean((1, 2))
