"""Auxiliary losses: further terms that the policy minimises in the same update, injected by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

from axon_core.interfaces import CausalLM
from axon_core.registry import Registry

__all__ = ["AUXILIARY_LOSSES", "AuxiliaryLoss"]


@runtime_checkable
class AuxiliaryLoss(Protocol):
    """Further terms of the policy's loss, such as that of the texts it was pre-trained on.

    If it is registered, its class has a `Config`, and is built as `cls(config, tokenizer=…, context=…, seed=…)`. If it
    has an attribute `digest`, a checksum of its data, a run resumes only with the same data.
    """

    def batch(self, step: int, size: int) -> dict[str, Tensor]:
        """Return the `size` examples of a step: a pure function of the step, so that a run may resume.

        Every tensor has `size` rows. They are cut into mini-batches, and iterated over, in the same way as the
        responses.
        """
        ...

    def counts(self, data: Mapping[str, Tensor]) -> Mapping[str, float | Tensor]:
        """Return the denominator of each term, a sum over the examples in `data` (`Trainer.counts`)."""
        ...

    def loss(self, policy: CausalLM, data: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the terms as sums, already weighted, under the names that `counts` uses (`Trainer.loss`)."""
        ...


AUXILIARY_LOSSES: Registry[AuxiliaryLoss] = Registry("auxiliary_loss", "axon_ppo.auxiliary:AuxiliaryLoss")
"""Auxiliary losses by key; a plugin adds one in the entry-point group `axon.v1.auxiliary_loss`."""
