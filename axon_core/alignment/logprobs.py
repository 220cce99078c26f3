"""How likely a causal language model finds completions: the sums that alignment and reward modelling rely on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from axon_core.errors import ContextError, UsageError
from axon_core.interfaces.model import CausalLM
from axon_core.precision import widen
from axon_core.text.tokenizer import PAD, Tokenizer

__all__ = [
    "Sequences",
    "completion_logprobs",
    "encode_completion",
    "scored_logprobs",
    "token_entropies",
    "token_logprobs",
]

_CHUNK = 1 << 22  # numbers that are held in float32 at once


@dataclass(frozen=True)
class Sequences:
    """Prompts with their completions, as rows of equal length.

    What is padding and what counts is known from how the rows were made, never guessed from the ids: a row may well
    hold the id that others are padded with.

    Attributes:
        tokens: the ids; `PAD` where a row is filled up.
        valid: False for padding.
        scored: the tokens that count, those of the completions; each has a token before it.
    """

    tokens: Int[Tensor, "b n"]
    valid: Bool[Tensor, "b n"]
    scored: Bool[Tensor, "b n"]

    @classmethod
    def of(
        cls,
        pairs: Iterable[tuple[Sequence[int], Sequence[int]]],
        *,
        context: int | None = None,
        names: Sequence[str] | None = None,
        padding: Literal["right", "left"] = "right",
        length: int | None = None,
    ) -> Self:
        """Make rows of the ids of prompts and their completions.

        Args:
            pairs: the ids of each prompt and of its completion.
            context: the most tokens a row may have.
            names: what to call each row in a message, such as "line 3 of data.jsonl"; by default its number.
            padding: the side on which short rows are filled up.
            length: of the rows; by default that of the longest.

        Raises:
            UsageError: there are no pairs, or a prompt or a completion has no token.
            ContextError: a prompt and its completion are longer than the context, or than `length`.
        """
        rows = [(list(prompt), list(completion)) for prompt, completion in pairs]
        if not rows:
            raise UsageError("sequences need at least one prompt and completion, got none")
        limit = min((size for size in (context, length) if size is not None), default=None)
        for i, (prompt, completion) in enumerate(rows):
            name = names[i] if names else f"sequence {i}"
            for ids, what in ((prompt, "prompt"), (completion, "completion")):
                if not ids:
                    raise UsageError(f"{name}: the {what} must have at least one token, got none")
            if limit is not None and len(prompt) + len(completion) > limit:
                raise ContextError(
                    f"{name}: prompt and completion must have at most {limit} tokens together, the model's "
                    f"context, got {len(prompt)} + {len(completion)}; shorten it, leave it out, or use a model with a "
                    "longer context"
                )
        size = length or max(len(prompt) + len(completion) for prompt, completion in rows)
        tokens = torch.full((len(rows), size), PAD)
        valid, scored = (torch.zeros(len(rows), size, dtype=torch.bool) for _ in range(2))
        for i, (prompt, completion) in enumerate(rows):
            used = len(prompt) + len(completion)
            begin = size - used if padding == "left" else 0
            tokens[i, begin : begin + used] = torch.tensor(prompt + completion)
            valid[i, begin : begin + used] = True
            scored[i, begin + len(prompt) : begin + used] = True
        return cls(tokens, valid, scored)

    def to(self, device: torch.device | str) -> Self:
        """Return the same sequences on a device."""
        return type(self)(self.tokens.to(device), self.valid.to(device), self.scored.to(device))


def encode_completion(tokenizer: Tokenizer, text: str, *, finished: bool = True) -> list[int]:
    """Return the ids of a text that follows a prompt, and `eos` if the tokenizer has one and the text is `finished`.

    The prompt is encoded by itself, as when a model continues it (`Tokenizer.encode_prompt`); so is the completion,
    without the space that some encoders put before a text. Raises `DataError` if it cannot be encoded.
    """
    # An encoder that adds a space does so at the very start: before a newline, which is then cut off.
    start = "\n" if tokenizer.drops_spaces else ""
    ids = tokenizer.encode(start + text, eos=finished and tokenizer.eos is not None)
    return ids[len(tokenizer.encode(start)) :]


def token_logprobs(logits: Float[Tensor, "*b v"], tokens: Int[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Return log p(token) = z_token − log Σ_v exp z_v in float32, or in float64 for float64 logits z.

    The normalised scores of all tokens are never held at once, neither here nor for the gradient: half-precision
    logits need no float32 copy.
    """
    flat: Tensor = _TokenLogprobs.apply(logits.flatten(0, -2), tokens.flatten())
    return flat.view(tokens.shape)


def token_entropies(logits: Float[Tensor, "*b v"]) -> Float[Tensor, "*b"]:
    """Return −Σ_v p_v log p_v, the entropy of each next token, in nats: in float32, as `token_logprobs`."""
    flat = logits.flatten(0, -2)
    entropies = [-torch.xlogy(p := widen(part).softmax(-1), p).sum(-1) for part in flat.split(_rows(flat))]
    return torch.cat(entropies).view(logits.shape[:-1])


def scored_logprobs(model: CausalLM, sequences: Sequences, *, vocab_size: int | None = None) -> Float[Tensor, "b n"]:
    """Return log p(token | tokens before it) of the scored tokens, each at its place, and 0 at all others.

    Only features that score such a token become logits. With `vocab_size`, p is what a `Decoder` with this argument
    draws from: only that many tokens, without the model's rows beyond them.
    """
    wanted = sequences.scored[:, 1:]
    features = model.features(sequences.tokens, valid=sequences.valid)[:, :-1][wanted]
    found = token_logprobs(model.logits(features[None])[0][:, :vocab_size], sequences.tokens[:, 1:][wanted])
    return pad(found.new_zeros(wanted.shape).masked_scatter(wanted, found), (1, 0))


def completion_logprobs(model: CausalLM, sequences: Sequences, *, vocab_size: int | None = None) -> Float[Tensor, " b"]:
    """Return log p(completion | prompt) of each row: the sum over its scored tokens, in float32.

    It depends neither on the side of the padding nor on its length. `vocab_size` as for `scored_logprobs`.
    """
    return scored_logprobs(model, sequences, vocab_size=vocab_size).sum(1)


class _TokenLogprobs(Function):
    """d log p(t) / d z_v = 1[v = t] − softmax(z)_v, written part by part into one tensor of the logits' dtype."""

    @staticmethod
    def forward(ctx: Any, logits: Float[Tensor, "r v"], tokens: Int[Tensor, " r"]) -> Float[Tensor, " r"]:
        size = _rows(logits)
        norms = torch.cat([widen(part).logsumexp(-1) for part in logits.split(size)])
        ctx.save_for_backward(logits, tokens, norms)
        return logits.gather(-1, tokens[:, None])[:, 0].to(norms.dtype) - norms

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  (the decorator makes `ctx` positional)
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor, None]:
        logits, tokens, norms = ctx.saved_tensors
        gradient, size = torch.empty_like(logits), _rows(logits)
        for out, z, token, norm, g in zip(
            *(tensor.split(size) for tensor in (gradient, logits, tokens, norms, gradients[0])), strict=True
        ):
            part = torch.sub(widen(z), norm[:, None], out=out if out.dtype == norm.dtype else None)
            part.exp_().mul_(-g[:, None]).scatter_add_(-1, token[:, None], g[:, None])
            if part is not out:
                out.copy_(part)
        return gradient, None


def _rows(logits: Float[Tensor, "r v"]) -> int:
    """Return how many rows are worked on at once."""
    return max(1, _CHUNK // logits.shape[-1])
