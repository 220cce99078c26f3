"""Runs the transcription of every algorithm against the registered part, in float64, on random inputs.

The parts are looked up by name, as a recipe does, and their weights are read from their state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from axon_core import MODELS, NORMS, ROTARY_EMBEDDINGS, Cache, NotRun, Scope, UnknownKey
from axon_core.generation import Sampling, sample_tokens
from axon_core.registry import registry_of
from axon_lab.pseudocode import transcriptions as steps
from axon_lab.pseudocode.random_parts import (
    BASES,
    EPS,
    LONG,
    as_array,
    draw_attention,
    draw_models,
    draw_tensor,
    draw_weights,
    head_weights,
    layer_weights,
    projection_weights,
)

__all__ = ["COMPARISONS", "TOLERANCE", "largest_difference"]

Compared = tuple[np.ndarray, Tensor]
"""What the transcription returns, and what the part does."""

TOLERANCE = 1e-12
"""Largest difference between a part and its transcription, both in float64, of numbers of the order of 1."""


def largest_difference(algorithm: str, seed: int = 0) -> float:
    """Return the largest difference between the transcription of `algorithm` and the part, over several shapes.

    Raises:
        NotRun: the part is not installed.
        KeyError: there is no algorithm of that id.
    """
    generator = torch.Generator().manual_seed(seed)
    try:
        with torch.no_grad():
            return max(_difference(*pair) for pair in COMPARISONS[algorithm](generator))
    except UnknownKey as error:
        raise NotRun(f"{algorithm} needs a part that is not installed: {error}") from error


def compare_embedding(generator: torch.Generator) -> Iterable[Compared]:
    """Compare what enters X-Llama's first layer with `embed_token`."""
    for model, tokens, _ in draw_models(generator):
        entered: list[Tensor] = []
        handle = model.blocks[0].register_forward_pre_hook(lambda _, args, kept=entered: kept.append(args[0]))
        model(tokens)
        handle.remove()
        W_e = as_array(model.embedding.weight).T
        for row, X in zip(tokens.tolist(), entered[0], strict=True):
            yield np.stack([steps.embed_token(v, W_e) for v in row]), X


def compare_rotary(generator: torch.Generator) -> Iterable[Compared]:
    """Compare `ROTARY_EMBEDDINGS["rotary"]` with `rotate_features`."""
    cls: Any = ROTARY_EMBEDDINGS["rotary"]
    for r, n, heads, base in ((2, 3, 1, BASES[0]), (8, 40, 3, BASES[0]), (64, 300, 1, BASES[1])):
        rotary = cls(cls.Config(dim=r, base=base)).double()
        x = draw_tensor(generator, 1, n, heads, r)
        rotated = rotary(torch.arange(n)[None])(x)[0]
        wanted = [[steps.rotate_features(as_array(head), t, base) for head in row] for t, row in enumerate(x[0])]
        yield np.array(wanted), rotated


def compare_single_query(generator: torch.Generator) -> Iterable[Compared]:
    """Compare the last token of `ATTENTIONS["MHA"]` with one head, in a whole pass and in decoding."""
    for n, d in ((1, 2), (5, 4), (33, 16)):
        part = draw_attention("MHA", generator, dim=d, n_heads=1, bias=True)
        part.out.weight.copy_(torch.eye(d))
        part.out.bias.zero_()
        x = draw_tensor(generator, 1, n, d)
        context = [as_array(e) for e in x[0]]
        wanted = steps.attend_single_query(context[-1], context, head_weights(part)[0])
        yield wanted, part(x, Scope.over(x))[0, -1]
        cache = Cache([part.state()], 1, n, dtype=x.dtype, device="cpu")
        decoded = x[:, :0]
        for t in range(n):
            step = cache.extend(torch.zeros(1, 1, dtype=torch.long))
            decoded = part(x[:, t : t + 1], step.scope, cache=step.layers[0])
        yield wanted, decoded[0, -1]


def compare_attention(generator: torch.Generator) -> Iterable[Compared]:
    """Compare `ATTENTIONS["MHA"]` with one head: causal, over all tokens, and over a memory with padding."""
    for b, n, d in ((1, 1, 2), (2, 7, 4), (11, LONG, 4)):
        part = draw_attention("MHA", generator, dim=d, n_heads=1, bias=True)
        part.out.weight.copy_(torch.eye(d))
        part.out.bias.zero_()
        x, (W,) = draw_tensor(generator, b, n, d), head_weights(part)
        for row, got in zip(x, part(x, Scope.over(x)), strict=True):
            yield steps.attend_columns(as_array(row).T, as_array(row).T, W, _causal(n)).T, got
        if n < LONG:
            everything = np.ones((n, n), dtype=bool)
            for row, got in zip(x, part(x, Scope.over(x, causal=False)), strict=True):
                yield steps.attend_columns(as_array(row).T, as_array(row).T, W, everything).T, got
            yield from _cross(part, x, generator, lambda X, Z, mask, W=W: steps.attend_columns(X, Z, W, mask))


def compare_heads(generator: torch.Generator) -> Iterable[Compared]:
    """Compare `ATTENTIONS["MHA"]`: causal self-attention, and attention to a memory with padding."""
    for b, n, h, d in ((1, 1, 1, 2), (2, 9, 3, 12), (3, LONG, 4, 16)):
        part = draw_attention("MHA", generator, dim=d, n_heads=h, bias=True)
        x, heads = draw_tensor(generator, b, n, d), head_weights(part)
        W_o, b_o = as_array(part.out.weight), as_array(part.out.bias)
        for row, got in zip(x, part(x, Scope.over(x)), strict=True):
            yield steps.attend_heads(as_array(row).T, as_array(row).T, heads, W_o, b_o, _causal(n)).T, got
        if n < LONG:
            yield from _cross(
                part,
                x,
                generator,
                lambda X, Z, mask, W=heads, W_o=W_o, b_o=b_o: steps.attend_heads(X, Z, W, W_o, b_o, mask),
            )


def compare_groups(generator: torch.Generator) -> Iterable[Compared]:
    """Compare `ATTENTIONS["GQA"]` with rotary embeddings, for one group, several, and one for each head."""
    rotary: Any = ROTARY_EMBEDDINGS["rotary"]
    for b, n, h, k, d in ((1, 1, 2, 1, 4), (2, 9, 4, 2, 16), (1, 13, 3, 3, 12), (3, LONG, 4, 1, 16)):
        for base in BASES[: 2 if n < LONG else 1]:
            part = draw_attention(
                "GQA",
                generator,
                rotary(rotary.Config(dim=d // h, base=base)),
                dim=d,
                n_heads=h,
                n_kv_heads=k,
                bias=False,
            )
            x, (W_q, W_k, W_v) = draw_tensor(generator, b, n, d), projection_weights(part)
            W_o = as_array(part.out.weight)
            for row, got in zip(x, part(x, Scope.over(x)), strict=True):
                yield steps.attend_groups(as_array(row).T, W_q, W_k, W_v, W_o, base).T, got


def compare_rmsnorm(generator: torch.Generator) -> Iterable[Compared]:
    """Compare `NORMS["rmsnorm"]`, with gradients and without; the small inputs are those that ε matters for."""
    cls: Any = NORMS["rmsnorm"]
    for d, eps in ((1, EPS), (5, EPS), (64, 1e-6)):
        norm = draw_weights(cls(cls.Config(dim=d, eps=eps)), generator)
        x = torch.cat([draw_tensor(generator, 9, d), 1e-3 * draw_tensor(generator, 9, d), torch.zeros(1, d)])
        wanted = np.stack([steps.normalise_rms(as_array(e), as_array(norm.weight), eps) for e in x])
        with torch.enable_grad():
            yield wanted, norm(x)
        yield wanted, norm(x)


def compare_swiglu(generator: torch.Generator) -> Iterable[Compared]:
    """Compare the feed-forward `swiglu` of X-Llama."""
    MODELS.entry("xllama")  # its distribution defines the registry
    cls: Any = registry_of("feed_forward")["swiglu"]
    for n, d, m in ((1, 1, 1), (7, 4, 6), (3, 16, 48)):
        part: Any = draw_weights(cls(cls.Config(dim=d, hidden_dim=m)), generator)
        x = draw_tensor(generator, 1, n, d)
        W_gate, W_up = np.split(as_array(part.gate_up.weight), 2)
        W_down = as_array(part.down.weight)
        wanted = [steps.transform_swiglu(as_array(e), W_gate, W_up, W_down) for e in x[0]]
        yield np.stack(wanted), part(x, Scope.over(x))[0]


def compare_unembedding(generator: torch.Generator) -> Iterable[Compared]:
    """Compare X-Llama's head: the distribution, and the token that `sample_tokens` draws from it."""
    for model, tokens, _ in draw_models(generator):
        features = model.features(tokens).flatten(0, 1)
        logits, W_u = model.logits(features), as_array(model.head.weight)
        p = np.stack([steps.unembed(as_array(e), W_u) for e in features])
        yield p, logits.softmax(-1)
        uniform = torch.rand(len(logits), generator=generator, dtype=torch.float64)
        drawn = (p.cumsum(-1) <= uniform.numpy()[:, None]).sum(-1)
        yield drawn.astype(float), sample_tokens(logits, Sampling(), uniform).double()


def compare_transformer(generator: torch.Generator) -> Iterable[Compared]:
    """Compare `MODELS["xllama"]`, with Llama 2's parts."""
    for model, tokens, base in draw_models(generator):
        layers = [layer_weights(block) for block in model.blocks]
        given = as_array(model.embedding.weight).T, layers, as_array(model.norm.weight), as_array(model.head.weight)
        for mode in (torch.no_grad, torch.enable_grad):
            with mode():
                predicted = model(tokens).softmax(-1)
            for x, got in zip(tokens, predicted, strict=True):
                yield steps.predict_tokens(x.numpy(), *given, base, EPS).T, got


COMPARISONS: dict[str, Callable[[torch.Generator], Iterable[Compared]]] = {
    "token-embedding": compare_embedding,
    "rotary-embedding": compare_rotary,
    "single-query-attention": compare_single_query,
    "attention": compare_attention,
    "multi-head-attention": compare_heads,
    "grouped-query-attention": compare_groups,
    "rmsnorm": compare_rmsnorm,
    "swiglu": compare_swiglu,
    "unembedding": compare_unembedding,
    "decoder-only-transformer": compare_transformer,
}
"""The comparison of each algorithm, by its id: each yields pairs of arrays that must be equal."""


def _difference(wanted: np.ndarray, got: Tensor) -> float:
    found = as_array(got)
    if found.shape != wanted.shape or found.dtype != np.float64:
        return float("inf")
    worst = float(np.abs(wanted - found).max())
    return worst if worst == worst else float("inf")


def _causal(n: int) -> np.ndarray:
    """Mask[t_z, t_x] = [t_z ≤ t_x]."""
    return np.arange(n)[:, None] <= np.arange(n)


def _cross(
    part: Any,
    x: Tensor,
    generator: torch.Generator,
    transcribed: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
) -> Iterable[Compared]:
    """Compare cross-attention of `x` to a memory of which a few tokens are padding."""
    b, n, d = x.shape
    m = n + 2
    memory = draw_tensor(generator, b, m, d)
    valid = torch.rand(b, m, generator=generator, dtype=torch.float64) < 0.7
    valid[:, 0] = True
    found = part(x, Scope.across(x, valid), memory=memory)
    for row, Z, seen, got in zip(x, memory, valid, found, strict=True):
        mask = np.repeat(seen.numpy()[:, None], n, axis=1)
        yield transcribed(as_array(row).T, as_array(Z).T, mask).T, got
