"""Parts in float64 with random weights, built by name, and their weights as the transcriptions take them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from axon_core import ATTENTIONS, MODELS
from axon_lab.pseudocode.transcriptions import HeadWeights, LayerWeights

__all__ = [
    "BASES",
    "EPS",
    "LONG",
    "draw_attention",
    "draw_models",
    "draw_tensor",
    "draw_weights",
    "head_weights",
    "layer_weights",
    "projection_weights",
]

BASES = (10_000.0, 500.0)
"""Bases of the rotary embeddings."""
EPS = 1e-5
"""What RMSNorm adds to the mean square."""
LONG = 192
"""Tokens from which on a CPU computes attention without gradients block by block."""


def as_array(x: Float[Tensor, "*n"]) -> Float[np.ndarray, "*n"]:
    """Return the numbers of `x`."""
    return x.detach().numpy()


def draw_tensor(generator: torch.Generator, *shape: int) -> Float[Tensor, "*shape"]:
    """Return normal numbers in float64."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def draw_weights(module: nn.Module, generator: torch.Generator) -> Any:
    """Return `module` in float64 with random weights: rows of a length around 1, and gains and biases around 0."""
    module.double().eval()
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(draw_tensor(generator, *weight.shape) * weight.shape[-1] ** (-0.5 if weight.ndim > 1 else 0))
    return module


def draw_attention(name: str, generator: torch.Generator, rotary: nn.Module | None = None, **sizes: Any) -> Any:
    """Return the attention `name` with random weights. Raises `UnknownKey` if it is not installed."""
    cls: Any = ATTENTIONS[name]
    return draw_weights(cls(cls.Config(**sizes), rotary), generator)


def projection_weights(part: Any) -> list[list[np.ndarray]]:
    """Return the matrices W_q, W_k and W_v of every head, from the rows of an attention's one projection."""
    stacked = part.qkv.projection
    return [np.split(W, len(W) // part.qkv.head_dim) for W in np.split(as_array(stacked.weight), _ends(stacked.rows))]


def head_weights(part: Any) -> list[HeadWeights]:
    """Return the matrices and biases of every head of multi-head attention."""
    stacked = part.qkv.projection
    biases = [np.split(b, len(b) // part.qkv.head_dim) for b in np.split(as_array(stacked.bias), _ends(stacked.rows))]
    W_q, W_k, W_v, b_q, b_k, b_v = (*projection_weights(part), *biases)
    return [HeadWeights(*head) for head in zip(W_q, b_q, W_k, b_k, W_v, b_v, strict=True)]


def _ends(rows: list[int]) -> list[int]:
    return [rows[0], rows[0] + rows[1]]


def draw_models(generator: torch.Generator) -> Iterable[tuple[Any, Int[Tensor, "b n"], float]]:
    """Yield X-Llamas with Llama 2's parts, some tokens for each, and the base of its rotary embedding.

    Raises:
        UnknownKey: X-Llama or one of the parts is not installed.
    """
    cls: Any = MODELS["xllama"]
    sizes = ((11, 4, 1, 1, 1, 1, 2), (23, 24, 2, 4, 2, 2, 9), (17, 16, 1, 4, 1, 3, LONG))
    for (vocab_size, dim, n_layers, n_heads, n_kv_heads, b, n), base in zip(sizes, (*BASES, BASES[0]), strict=True):
        model = cls.build(
            vocab_size=vocab_size,
            context=n,
            dim=dim,
            n_layers=n_layers,
            n_heads=n_heads,
            attention={"type": "GQA", "n_kv_heads": n_kv_heads},
            rotary={"type": "rotary", "base": base},
            norm={"type": "rmsnorm", "eps": EPS},
            feed_forward={"type": "swiglu"},
        )
        tokens = torch.randint(vocab_size, (b, n), generator=generator)
        yield draw_weights(model, generator), tokens, base


def layer_weights(block: Any) -> LayerWeights:
    """Return the weights of a layer of X-Llama."""
    W_q, W_k, W_v = projection_weights(block.attention)
    W_gate, W_up = np.split(as_array(block.feed_forward.gate_up.weight), 2)
    return LayerWeights(
        g_attention=as_array(block.attention_norm.weight),
        W_q=W_q,
        W_k=W_k,
        W_v=W_v,
        W_o=as_array(block.attention.out.weight),
        g_mlp=as_array(block.feed_forward_norm.weight),
        W_gate=W_gate,
        W_up=W_up,
        W_down=as_array(block.feed_forward.down.weight),
    )
