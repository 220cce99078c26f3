"""What policy, reference and value model give for the tokens of responses, and what each token is credited with."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from axon_core import widen
from axon_core.alignment import Sequences, token_logprobs
from axon_core.interfaces import CausalLM
from axon_ppo.maths import gae, whiten

__all__ = ["action_logits", "action_values", "compute_advantages", "score_tokens"]


def action_logits(
    model: CausalLM, sequences: Sequences, temperature: float, vocab_size: int | None = None
) -> tuple[Float[Tensor, "k v"], Int[Tensor, " k"]]:
    """Return the logits, divided by `temperature`, that scored tokens were drawn from, and these tokens, row by row.

    Only features that score such a token become logits, and only those of the tokenizer's `vocab_size` tokens: rows of
    the model beyond them are never drawn.
    """
    scored = sequences.scored[:, 1:]
    features = model.features(sequences.tokens, valid=sequences.valid)[:, :-1]
    logits = model.logits(features[scored][None])[0][:, :vocab_size]
    if temperature != 1:
        logits = widen(logits) / temperature
    return logits, sequences.tokens[:, 1:][scored]


def action_values(model: nn.Module, sequences: Sequences) -> Float[Tensor, " k"]:
    """Return the value of the state in which each scored token was chosen, row by row."""
    return widen(model(sequences.tokens, valid=sequences.valid)[:, :-1][sequences.scored[:, 1:]])


def score_tokens(
    policy: CausalLM,
    reference: CausalLM,
    value: nn.Module,
    rows: Sequences,
    *,
    temperature: float,
    pieces: int,
    vocab_size: int | None = None,
) -> dict[str, Float[Tensor, "b n"]]:
    """Return `logprob`, `reference` and `value`: what each gives for an action, at its token's place; 0 elsewhere.

    The rows are cut into `pieces`, of which one is in memory at a time. `temperature` and `vocab_size` as for
    `action_logits`.
    """
    found = list[dict[str, Tensor]]()
    for at in torch.arange(len(rows.tokens)).chunk(pieces):
        part = Sequences(rows.tokens[at], rows.valid[at], rows.scored[at])
        said = {
            "logprob": token_logprobs(*action_logits(policy, part, temperature, vocab_size)),
            "reference": token_logprobs(*action_logits(reference, part, temperature, vocab_size)),
            "value": action_values(value, part),
        }
        found.append({name: x.new_zeros(part.scored.shape).masked_scatter(part.scored, x) for name, x in said.items()})
    return {name: torch.cat([piece[name] for piece in found]) for name in found[0]}


def compute_advantages(
    scores: Float[Tensor, " b"],
    kl: Float[Tensor, "b n"],
    values: Float[Tensor, "b n"],
    scored: Bool[Tensor, "b n"],
    *,
    coefficient: float,
    gamma: float,
    gae_lambda: float,
) -> dict[str, Tensor]:
    """Return whitened `advantage` and `return` `(b n)` of each action, and the `reward` `(b)` that a response earns.

    An action earns −β KL_t, and the last one of a response also the score (arXiv 2203.02155, Section 3.5).

    Args:
        scores: what each response is worth.
        kl: the estimate KL_t of each action.
        values: of the state that each action was taken in.
        scored: where the actions are.
        coefficient: β.
        gamma: discount γ.
        gae_lambda: λ of the generalised advantages.
    """
    last = scored & ~_next(scored)
    rewards = torch.where(last, scores[:, None], 0) - coefficient * kl
    advantages, returns = gae(rewards, values, _next(values), last, gamma=gamma, gae_lambda=gae_lambda)
    return {"advantage": whiten(advantages, scored), "return": returns * scored, "reward": rewards.sum(1)}


def _next(x: Tensor) -> Tensor:
    """Return, at each place, what is at the next one; at the last, 0."""
    return nn.functional.pad(x[:, 1:], (0, 1))
