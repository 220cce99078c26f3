"""What a state is worth: a causal language model's features, and a scalar head."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from axon_core.interfaces import CausalLM

__all__ = ["ValueModel"]


class ValueModel(nn.Module):
    """The value of each prefix, `(b n) -> (b n)`: a linear function of any `CausalLM`'s features.

    It starts at 0, so that the first advantages are those without a value function. The trunk's own output layer is not
    used, and gets no gradient.
    """

    def __init__(self, trunk: CausalLM) -> None:
        super().__init__()
        self.trunk = trunk
        with torch.no_grad():
            probe = torch.zeros(1, 1, dtype=torch.long, device=next(trunk.parameters()).device)
            features = trunk.features(probe)
        self.head = nn.Linear(features.shape[-1], 1, device=features.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def context(self) -> int:
        """The longest text the model is meant for."""
        return self.trunk.context

    def forward(self, tokens: Int[Tensor, "b n"], *, valid: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b n"]:
        """Return the value of the text up to and including each token; `valid` is False for padding."""
        return self.head(self.trunk.features(tokens, valid=valid)).squeeze(-1)

    def hidden_matrices(self) -> list[Tensor]:
        """Return the trunk's matrices, which a matrix optimiser is for."""
        return self.trunk.hidden_matrices()
