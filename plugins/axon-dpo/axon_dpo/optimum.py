"""Preference losses where all texts can be listed: expectations in place of samples, and exact optima.

Source: arXiv 2305.18290, Eq. 4 and 7.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from axon_dpo.losses import PreferenceLoss

__all__ = ["expected_loss", "optimal_policy", "preferences", "tabular_policy"]


def optimal_policy(reference: Float[Tensor, " y"], rewards: Float[Tensor, " y"], beta: float) -> Float[Tensor, " y"]:
    """Return π*(y) = π_ref(y) exp(r(y)/β) / Z, which maximises reward minus β times the KL from the reference.

    Source: arXiv 2305.18290, Section 4, Eq. 4.
    """
    return (reference.log() + rewards / beta).softmax(0)


def preferences(rewards: Float[Tensor, " y"], flip_rate: float = 0.0) -> Float[Tensor, "y y"]:
    """Return P(row is chosen over column) = σ(r_row − r_column), after a share of the choices has been flipped.

    Source: the Bradley–Terry model, arXiv 2305.18290, Section 3, Eq. 1.
    """
    clean = (rewards[:, None] - rewards).sigmoid()
    return (1 - flip_rate) * clean + flip_rate * (1 - clean)


def expected_loss(
    logps: Float[Tensor, " y"],
    reference: Float[Tensor, " y"],
    chosen: Float[Tensor, "y y"],
    loss: PreferenceLoss,
) -> Float[Tensor, ""]:
    """Return the mean loss where all pairs of texts are compared equally often.

    Args:
        logps: log π(y) of all texts.
        reference: log π_ref(y).
        chosen: P(row is chosen over column).
        loss: the loss of one comparison.
    """
    ratios = logps - reference
    return (chosen * loss.of(ratios[:, None] - ratios)).mean()


def tabular_policy(
    reference: Float[Tensor, " y"], chosen: Float[Tensor, "y y"], loss: PreferenceLoss
) -> Float[Tensor, " y"]:
    """Return the policy that minimises `expected_loss`, found by its exact gradient, starting from the reference."""
    scores = reference.log().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [scores], max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = expected_loss(scores.log_softmax(0), reference.log(), chosen, loss)
        value.backward()
        return value

    optimizer.step(closure)
    return scores.detach().softmax(0)
