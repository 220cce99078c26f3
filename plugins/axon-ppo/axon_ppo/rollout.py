"""What a policy, a reference and a value model say of the tokens of responses."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from axon_core.interfaces.model import CausalLM
from axon_core.likelihood import Sequences, token_entropies, token_logprobs

__all__ = ["action_logprobs", "action_values"]


def action_logprobs(
    model: CausalLM, sequences: Sequences, temperature: float
) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"]]:
    """Return log π of each scored token, and the entropy of the distribution it was drawn from, row after row.

    π is the model's distribution at `temperature`. Only features that score such a token become logits.
    """
    scored = sequences.scored[:, 1:]
    features = model.features(sequences.tokens, valid=sequences.valid)[:, :-1]
    logits = model.logits(features[scored][None])[0]
    if temperature != 1:
        logits = _precise(logits) / temperature
    return token_logprobs(logits, sequences.tokens[:, 1:][scored]), token_entropies(logits)


def action_values(model: nn.Module, sequences: Sequences) -> Float[Tensor, " k"]:
    """Return the value of the state in which each scored token was chosen, row after row."""
    return _precise(model(sequences.tokens, valid=sequences.valid)[:, :-1][sequences.scored[:, 1:]])


def _precise(x: Tensor) -> Tensor:
    """Return half-precision numbers in float32, others as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
