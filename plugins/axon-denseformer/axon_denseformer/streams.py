"""Residual streams with learned weights: of all layers so far, or of the last one and the embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from axon_xllama.residual import ResidualStream

__all__ = ["DepthWeightedAverage", "EmbeddingMix", "weighted_sum"]


def weighted_sum(outputs: Sequence[Float[Tensor, "b n d"]], weights: Float[Tensor, " j"]) -> Float[Tensor, "b n d"]:
    """Return Σ_j w_j X_j, computed in the dtype of the outputs (arXiv 2402.02622, Figure 1)."""
    weights = weights.to(outputs[-1].dtype)
    total = outputs[-1] * weights[-1]
    for x, weight in zip(outputs[:-1], weights[:-1], strict=True):
        total = torch.addcmul(total, x, weight)
    return total


class DepthWeightedAverage(ResidualStream):
    """Depth-weighted averaging, DWA: after layer i the next one reads Y_i = Σ_{j=0}^{i} α_{i,j} X_j.

    X_0 are the embeddings and X_j the output of layer j. At first α_{i,i} is 1 and the others 0, so that the model
    starts as one with a plain residual stream; L layers have L (L + 3) / 2 weights. While a pass runs, all outputs are
    kept. Source: arXiv 2402.02622, Figure 1.
    """

    def __init__(self, config: ResidualStream.Config) -> None:
        super().__init__(config)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.cat((torch.zeros(layer), torch.ones(1)))) for layer in range(1, config.n_layers + 1)
        )

    def forward(self, x: Float[Tensor, "b n d"], past: list[Tensor]) -> Float[Tensor, "b n d"]:
        """Return the weighted sum of all outputs so far; the embeddings as they are."""
        past.append(x)
        layer = len(past) - 1
        return weighted_sum(past, self.weights[layer - 1]) if layer else x


class EmbeddingMix(ResidualStream):
    """The last output and the embeddings: after layer i the next one reads Y_i = a_i X_i + b_i X_0.

    It is `DepthWeightedAverage` whose other weights stay 0, at the cost of two products a layer; at first a_i is 1 and
    b_i is 0 (a special case of arXiv 2402.02622, Figure 1). It follows the `x0_lambdas` and `resid_lambdas` of
    modded-nanogpt, a public speed run.
    """

    def __init__(self, config: ResidualStream.Config) -> None:
        super().__init__(config)
        self.last = nn.Parameter(torch.ones(config.n_layers))
        self.first = nn.Parameter(torch.zeros(config.n_layers))

    def forward(self, x: Float[Tensor, "b n d"], past: list[Tensor]) -> Float[Tensor, "b n d"]:
        """Return the weighted sum of both; the embeddings as they are."""
        past.append(x if not past else past[0])  # their number counts the layers
        layer = len(past) - 1
        if not layer:
            return x
        return weighted_sum((past[0], x), torch.stack((self.first[layer - 1], self.last[layer - 1])))
