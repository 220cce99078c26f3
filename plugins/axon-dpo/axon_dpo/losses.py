"""Preference losses, in a registry of their own: pure functions of how much more the policy prefers the chosen text.

Everywhere Δ = log π(y_w)/π_ref(y_w) − log π(y_l)/π_ref(y_l), as in arXiv 2305.18290, Eq. 7: y_w is the chosen text and
y_l the rejected one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, PositiveFloat
from torch import Tensor
from torch.nn.functional import logsigmoid

from axon_core import config
from axon_core.registry import Registry
from axon_dpo.raters import StatedPreference

__all__ = [
    "IPO",
    "PREFERENCE_LOSSES",
    "Conservative",
    "Hinge",
    "PreferenceLoss",
    "Robust",
    "Sigmoid",
    "conservative",
    "hinge",
    "ipo",
    "prospect",
    "reference_point",
    "robust",
    "sigmoid",
]


def sigmoid(delta: Float[Tensor, "*b"], beta: float) -> Float[Tensor, "*b"]:
    """Return −log σ(βΔ): how surprising the choice is if βΔ is a difference of rewards (arXiv 2305.18290, Eq. 7)."""
    return -logsigmoid(beta * delta)


def conservative(delta: Float[Tensor, "*b"], beta: float, label_smoothing: float) -> Float[Tensor, "*b"]:
    """Return (1 − ε) L(Δ) + ε L(−Δ) with L = `sigmoid`: its minimum is at βΔ = log (1 − ε)/ε, not at infinity.

    Source: E. Mitchell, "A note on DPO with noisy preferences and relationship to IPO", 2023.
    """
    return (1 - label_smoothing) * sigmoid(delta, beta) + label_smoothing * sigmoid(-delta, beta)


def robust(delta: Float[Tensor, "*b"], beta: float, flip_rate: float) -> Float[Tensor, "*b"]:
    """Return [(1 − ε) L(Δ) − ε L(−Δ)] / (1 − 2ε) with L = `sigmoid`.

    Where a share ε of the choices was flipped at random, its mean is that of L without the flips (arXiv 2403.00409).
    """
    return ((1 - flip_rate) * sigmoid(delta, beta) - flip_rate * sigmoid(-delta, beta)) / (1 - 2 * flip_rate)


def ipo(delta: Float[Tensor, "*b"], beta: float) -> Float[Tensor, "*b"]:
    """Return (Δ − 1/(2β))²; β is the paper's τ (arXiv 2310.12036, Eq. 17)."""
    return (delta - 1 / (2 * beta)).square()


def hinge(delta: Float[Tensor, "*b"], beta: float) -> Float[Tensor, "*b"]:
    """Return max(0, 1 − βΔ): zero once the chosen text is preferred by enough (arXiv 2309.06657)."""
    return (1 - beta * delta).relu()


def prospect(
    ratios: Float[Tensor, "*b"],
    desirable: Bool[Tensor, "*b"],
    point: Float[Tensor, "*b"] | float,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Float[Tensor, "*b"]:
    """Return λ_y − v: v is λ_D σ(β(r − z_0)) for a desirable text and λ_U σ(β(z_0 − r)) for another.

    Source: arXiv 2402.01306, Eq. 7 by the count of TRL's `KTOTrainer`, which computes the same.

    Args:
        ratios: r = log π(y|x)/π_ref(y|x).
        desirable: which texts are.
        point: z_0, at which a text is neither a gain nor a loss (`reference_point`).
        beta: how soon gains and losses saturate.
        desirable_weight: λ_D.
        undesirable_weight: λ_U.
    """
    gain = torch.where(desirable, ratios - point, point - ratios)
    missed = (-beta * gain).sigmoid()  # 1 − σ(x) = σ(−x)
    return torch.where(desirable, desirable_weight * missed, undesirable_weight * missed)


def reference_point(total: float, count: float) -> float:
    """Return z_0 = max(0, the mean of log π(y'|x)/π_ref(y'|x)), for texts y' that belong to other prompts than x.

    This estimates KL(π ‖ π_ref) without sampling; no gradient flows through it. Source: arXiv 2402.01306, as for
    `prospect`.

    Args:
        total: the sum over the pairs.
        count: how many there are.
    """
    return max(0.0, total / count) if count else 0.0


class PreferenceLoss(ABC):
    """A loss of comparisons, one number for each."""

    class Config(config.Config):
        """What every preference loss has."""

        beta: PositiveFloat = 0.1
        """How costly it is to move away from the reference (arXiv 2305.18290, Appendix B: 0.1)."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, ratios: Float[Tensor, "b 2"], lengths: Int[Tensor, "b 2"]) -> Float[Tensor, " b"]:
        """Return the loss of each comparison.

        Args:
            ratios: log π(y)/π_ref(y) of the chosen and of the rejected text.
            lengths: how many tokens each has.
        """
        chosen, rejected = ratios.unbind(1)
        return self.of(chosen - rejected)

    @abstractmethod
    def of(self, delta: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """Return the loss at Δ."""

    # What follows is for losses that learn about raters; all others trust everybody alike.

    def introduce(  # noqa: B027
        self, raters: Sequence[str], train: Iterable[StatedPreference], held_out: Iterable[StatedPreference]
    ) -> None:
        """Take note, before training, of the raters' names, and of who preferred what; by default do nothing.

        Without names, all comparisons are by one rater, number 0.
        """

    def by(self, raters: Int[Tensor, "*b"] | None) -> PreferenceLoss:
        """Return the loss of comparisons by these raters, by number; None if the data do not name them."""
        return self

    def learn(  # noqa: B027
        self, step: int, compare: Callable[[], tuple[Float[Tensor, " n"], Int[Tensor, " n"]]]
    ) -> None:
        """Learn before a step what `compare` shows, the Δ of held-out comparisons and their raters' numbers.

        To call it costs an evaluation. By default nothing is learnt.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what has been learnt; by default nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Restore what `state_dict` returned. Raises `CheckpointError` if it belongs to other raters."""

    def export(self, folder: Path) -> None:  # noqa: B027
        """Write into a model's folder what has been learnt; by default nothing."""


class Sigmoid(PreferenceLoss):
    """The paper's loss: `axon_dpo.losses.sigmoid` (arXiv 2305.18290, Section 4, Eq. 7)."""

    def of(self, delta: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """Return the loss at Δ."""
        return sigmoid(delta, self.config.beta)


class Conservative(PreferenceLoss):
    """The loss of arXiv 2305.18290, Eq. 7, with smoothed labels: `axon_dpo.losses.conservative`."""

    class Config(PreferenceLoss.Config):
        """How much the choices are trusted."""

        label_smoothing: float = Field(default=0.1, gt=0, lt=0.5)
        """The share ε of choices that may be wrong."""

    config: Config

    def of(self, delta: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """Return the loss at Δ."""
        return conservative(delta, self.config.beta, self.config.label_smoothing)


class Robust(PreferenceLoss):
    """The loss of arXiv 2305.18290, Eq. 7, with the flips' bias taken out: `axon_dpo.losses.robust`."""

    class Config(PreferenceLoss.Config):
        """How many choices are wrong."""

        flip_rate: float = Field(default=0.1, gt=0, lt=0.5)
        """The share ε of choices that were flipped."""

    config: Config

    def of(self, delta: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """Return the loss at Δ."""
        return robust(delta, self.config.beta, self.config.flip_rate)


class IPO(PreferenceLoss):
    """A squared loss, which does not send Δ to infinity where all choices agree: `axon_dpo.losses.ipo`.

    Source: arXiv 2310.12036, Eq. 17.
    """

    class Config(PreferenceLoss.Config):
        """What Δ is measured in."""

        length_normalised: bool
        """Whether Δ is made of means over the tokens, as in widespread code, or of sums, as in the paper's formula."""

    config: Config

    def __call__(self, ratios: Float[Tensor, "b 2"], lengths: Int[Tensor, "b 2"]) -> Float[Tensor, " b"]:
        """Return the loss of each comparison; see `PreferenceLoss.__call__`."""
        return super().__call__(ratios / lengths if self.config.length_normalised else ratios, lengths)

    def of(self, delta: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """Return the loss at Δ."""
        return ipo(delta, self.config.beta)


class Hinge(PreferenceLoss):
    """The margin loss in place of the logarithm of arXiv 2305.18290, Eq. 7: `axon_dpo.losses.hinge`."""

    def of(self, delta: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """Return the loss at Δ."""
        return hinge(delta, self.config.beta)


PREFERENCE_LOSSES: Registry[PreferenceLoss] = Registry("preference_loss", PreferenceLoss)
"""Preference losses by key; a plugin adds one in the entry-point group `axon.v1.preference_loss`."""
