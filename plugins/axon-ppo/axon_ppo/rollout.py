"""Acting with a language model: responses drawn, and what a policy, a reference and a value model say of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from axon_core.generation import decode
from axon_core.interfaces.model import CausalLM
from axon_core.likelihood import Sequences, token_entropies, token_logprobs
from axon_core.sampling import Sampling

__all__ = ["Response", "action_logprobs", "action_values", "respond"]


class Response(NamedTuple):
    """What a policy wrote after a prompt."""

    tokens: list[int]
    """Its actions, the end-of-text token included; at least one."""
    finished: bool
    """Whether it ended by itself."""


def respond(
    policy: CausalLM,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float,
    eos: int | None,
) -> list[Response]:
    """Return a response to each prompt, which depends on the prompt and its seed alone, not on the other rows.

    Where there is no `eos` every response has `max_new_tokens`, and counts as finished.
    """
    rows = [list[int]() for _ in prompts]
    sampling = Sampling(temperature=temperature)
    for step in decode(policy, prompts, seeds, max_new_tokens=max_new_tokens, sampling=sampling, stop=eos):
        for row, token in zip(rows, step, strict=True):
            if token is not None:
                row.append(token)
    if eos is None:
        return [Response(row, True) for row in rows]
    return [Response([*row, eos], True) if len(row) < max_new_tokens else Response(row, False) for row in rows]


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
