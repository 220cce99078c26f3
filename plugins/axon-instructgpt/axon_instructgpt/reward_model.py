"""Model `reward`: what a text is worth, from a causal language model's features and a scalar head."""

from __future__ import annotations

from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from pydantic import PositiveInt
from torch import Tensor, nn

from axon_core import MODELS, ContractError
from axon_core.interfaces import CausalLM, Model
from axon_core.registry import Spec, key_of, part

__all__ = ["RewardModel"]


class RewardModel(Model):
    """The score of each prefix of a text, `(b n) -> (b n)`: a linear function of any `CausalLM`'s features.

    The score of a whole text is at its last token. The head replaces the trunk's output layer, which is not used (arXiv
    2203.02155, Section 3.5). The head is initialised from N(0, 1/(d + 1)) (arXiv 2009.01325). `bias` is subtracted from
    scores, so that reference answers have a mean score of 0.

    Raises:
        ContractError: the trunk is not a `CausalLM`.
    """

    class Config(Model.Config):
        """The trunk, and the size of its features."""

        trunk: Spec
        """The causal language model, by `type`, with all its options."""
        dim: PositiveInt
        """Features d of a token in the trunk."""

    config: Config
    examples = ({"trunk": {"type": "xllama", "vocab_size": 61, "context": 16, "dim": 32, "n_layers": 1, "n_heads": 2}},)
    bias: Tensor

    def __init__(self, config: Config, trunk: CausalLM | None = None) -> None:
        super().__init__(config)
        found = part(config, "trunk", MODELS) if trunk is None else trunk
        if not isinstance(found, CausalLM):
            raise ContractError(f"a reward model needs a CausalLM as its trunk, got a {type(found).__name__}")
        self.trunk = found
        drawn = torch.randn(config.dim, dtype=torch.float32) * (config.dim + 1) ** -0.5
        self.head = nn.Parameter(drawn.to(torch.get_default_dtype()))
        self.register_buffer("bias", torch.zeros(()))

    @classmethod
    def of(cls, trunk: CausalLM) -> Self:
        """Return a reward model that starts from `trunk`, with a new head; the weights are the trunk's own."""
        device = next(trunk.parameters()).device
        with torch.no_grad():
            dim = trunk.features(torch.zeros(1, 1, dtype=torch.long, device=device)).shape[-1]
        spec = Spec.of({"type": key_of(type(trunk)), **trunk.config.model_dump(mode="json")})
        return cls(cls.Config(trunk=spec, dim=dim), trunk).to(device)

    @property
    def context(self) -> int:
        """The longest text the model is meant for."""
        return self.trunk.context

    def forward(self, tokens: Int[Tensor, "b n"], *, valid: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b n"]:
        """Return the score of the text up to and including each token; `valid` is False for padding, on either side."""
        return self._scores(self.trunk.features(tokens, valid=valid)) - self.bias

    def whole(self, tokens: Int[Tensor, "b n"], valid: Bool[Tensor, "b n"]) -> Float[Tensor, " b"]:
        """Return the score of each whole text, at its last token that is not padding, before `bias` is subtracted."""
        last = tokens.shape[1] - 1 - valid.flip(1).long().argmax(1)
        features = self.trunk.features(tokens, valid=valid)
        return self._scores(features[torch.arange(len(tokens), device=tokens.device), last])

    def hidden_matrices(self) -> list[Tensor]:
        """The weight matrices of the trunk's layers."""
        return self.trunk.hidden_matrices()

    def _scores(self, features: Float[Tensor, "*b d"]) -> Float[Tensor, "*b"]:
        # No matrix product, which autocast would round to bfloat16: differences of scores are small.
        return (features.to(self.head.dtype) * self.head).sum(-1)
