"""The algorithms of the pages, written line by line in NumPy's float64: `# 3` is the line that is step 3 of the page.

A vector is a column, a matrix holds one token a column, and a product is written in the order of arXiv 2207.09238, so
that `W_e[:, v]` and `W_q @ X` read as they do there. Indices count from 0. None of it uses torch or a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

__all__ = [
    "HeadWeights",
    "LayerWeights",
    "attend_columns",
    "attend_groups",
    "attend_heads",
    "attend_single_query",
    "embed_token",
    "normalise_rms",
    "predict_tokens",
    "rotate_features",
    "transform_swiglu",
    "unembed",
]

Array = np.ndarray


class HeadWeights(NamedTuple):
    """The matrices of one attention head, W_qkv in arXiv 2207.09238: each has one row per feature of the head."""

    W_q: Float[Array, "a x"]
    b_q: Float[Array, " a"]
    W_k: Float[Array, "a z"]
    b_k: Float[Array, " a"]
    W_v: Float[Array, "o z"]
    b_v: Float[Array, " o"]


class LayerWeights(NamedTuple):
    """The matrices of one layer of the decoder-only transformer: those of `attend_groups` and of `transform_swiglu`."""

    g_attention: Float[Array, " d"]
    W_q: Sequence[Float[Array, "a d"]]
    W_k: Sequence[Float[Array, "a d"]]
    W_v: Sequence[Float[Array, "a d"]]
    W_o: Float[Array, "d ha"]
    g_mlp: Float[Array, " d"]
    W_gate: Float[Array, "m d"]
    W_up: Float[Array, "m d"]
    W_down: Float[Array, "d m"]


def embed_token(v: int, W_e: Float[Array, "d v"]) -> Float[Array, " d"]:
    """Return the embedding of token `v` (arXiv 2207.09238, Algorithm 1)."""
    return W_e[:, v]  # 1


def rotate_features(x: Float[Array, " r"], t: int, base: float) -> Float[Array, " r"]:
    """Return `x` rotated for position `t` (arXiv 2104.09864, Section 3.2.2), with feature i paired with i + r/2."""
    r = len(x)
    rotated = np.zeros(r)
    for i in range(r // 2):  # 1
        theta = base ** (-2 * i / r)  # 2
        phi = t * theta  # 3
        rotated[i] = x[i] * np.cos(phi) - x[i + r // 2] * np.sin(phi)  # 4
        rotated[i + r // 2] = x[i + r // 2] * np.cos(phi) + x[i] * np.sin(phi)  # 5
    return rotated  # 6


def attend_single_query(
    e: Float[Array, " x"], context: Sequence[Float[Array, " z"]], W: HeadWeights
) -> Float[Array, " o"]:
    """Return what one token gathers from those of its context (arXiv 2207.09238, Algorithm 3)."""
    q = W.W_q @ e + W.b_q  # 1
    k = [W.W_k @ e_t + W.b_k for e_t in context]  # 2
    v = [W.W_v @ e_t + W.b_v for e_t in context]  # 3
    scores = [np.exp(q @ k_t / np.sqrt(len(q))) for k_t in k]
    alpha = [score / sum(scores) for score in scores]  # 4
    return sum((alpha_t * v_t for alpha_t, v_t in zip(alpha, v, strict=True)), np.zeros(len(v[0])))  # 5


def attend_columns(
    X: Float[Array, "x n"], Z: Float[Array, "z m"], W: HeadWeights, mask: Bool[Array, "m n"]
) -> Float[Array, "o n"]:
    """Return what each column of X gathers from the columns of Z that `mask` lets it see.

    Source: arXiv 2207.09238, Algorithm 4.
    """
    Q = W.W_q @ X + W.b_q[:, None]  # 1
    K = W.W_k @ Z + W.b_k[:, None]  # 2
    V = W.W_v @ Z + W.b_v[:, None]  # 3
    S = K.T @ Q  # 4
    for t_z in range(S.shape[0]):
        for t_x in range(S.shape[1]):
            if not mask[t_z, t_x]:
                S[t_z, t_x] = -np.inf  # 5
    return V @ _softmax(S / np.sqrt(len(Q)))  # 6


def attend_heads(
    X: Float[Array, "x n"],
    Z: Float[Array, "z m"],
    heads: Sequence[HeadWeights],
    W_o: Float[Array, "d ho"],
    b_o: Float[Array, " d"],
    mask: Bool[Array, "m n"],
) -> Float[Array, "d n"]:
    """Return the attention of several heads (arXiv 2207.09238, Algorithm 5)."""
    Y = []
    for W in heads:  # 1
        Y.append(attend_columns(X, Z, W, mask))  # 2
    stacked = np.concatenate(Y)  # 3
    return W_o @ stacked + b_o[:, None]  # 4


def attend_groups(
    X: Float[Array, "d n"],
    W_q: Sequence[Float[Array, "a d"]],
    W_k: Sequence[Float[Array, "a d"]],
    W_v: Sequence[Float[Array, "a d"]],
    W_o: Float[Array, "d ha"],
    base: float,
) -> Float[Array, "d n"]:
    """Return causal grouped-query attention with rotary embeddings, as in Llama 2 (arXiv 2305.13245, Section 2.2)."""
    n, H, G = X.shape[1], len(W_q), len(W_k)
    K, V, Y = [], [], []
    for g in range(G):  # 1
        K.append(W_k[g] @ X)  # 2
        V.append(W_v[g] @ X)  # 3
        for t in range(n):
            K[g][:, t] = rotate_features(K[g][:, t], t, base)  # 4
    for h in range(H):  # 5
        Q = W_q[h] @ X  # 6
        for t in range(n):
            Q[:, t] = rotate_features(Q[:, t], t, base)  # 7
        g = h // (H // G)  # 8
        S = K[g].T @ Q  # 9
        for t_z in range(n):
            for t_x in range(n):
                if t_z > t_x:
                    S[t_z, t_x] = -np.inf  # 10
        Y.append(V[g] @ _softmax(S / np.sqrt(len(Q))))  # 11
    return W_o @ np.concatenate(Y)  # 12


def normalise_rms(e: Float[Array, " d"], g: Float[Array, " d"], eps: float) -> Float[Array, " d"]:
    """Return `e` divided by its root mean square, times the gain `g` (arXiv 1910.07467, Eq. 4, with Llama's ε)."""
    s = 0.0
    for e_i in e:
        s += e_i**2 / len(e)  # 1
    return e / np.sqrt(s + eps) * g  # 2


def transform_swiglu(
    e: Float[Array, " d"], W_gate: Float[Array, "m d"], W_up: Float[Array, "m d"], W_down: Float[Array, "d m"]
) -> Float[Array, " d"]:
    """Return the SwiGLU feed-forward of one token (arXiv 2002.05202, Section 2, Eq. 6)."""
    a = W_gate @ e  # 1
    b = W_up @ e  # 2
    c = a / (1 + np.exp(-a)) * b  # 3
    return W_down @ c  # 4


def unembed(e: Float[Array, " d"], W_u: Float[Array, "v d"]) -> Float[Array, " v"]:
    """Return the distribution of the token that follows (arXiv 2207.09238, Algorithm 7)."""
    z = W_u @ e  # 1
    return np.exp(z) / np.exp(z).sum()  # 2


def predict_tokens(
    x: Int[Array, " n"],
    W_e: Float[Array, "d v"],
    layers: Sequence[LayerWeights],
    g: Float[Array, " d"],
    W_u: Float[Array, "v d"],
    base: float,
    eps: float,
) -> Float[Array, "v n"]:
    """Return the distribution of the token after each prefix of `x`, with the layers of Llama 2.

    Source: arXiv 2207.09238, Algorithm 10; arXiv 2307.09288, Section 2.2.
    """
    columns = range(len(x))
    X = np.stack([embed_token(v, W_e) for v in x], axis=1)  # 1
    for W in layers:  # 2
        normalised = np.stack([normalise_rms(X[:, t], W.g_attention, eps) for t in columns], axis=1)  # 3
        X = X + attend_groups(normalised, W.W_q, W.W_k, W.W_v, W.W_o, base)  # 4
        normalised = np.stack([normalise_rms(X[:, t], W.g_mlp, eps) for t in columns], axis=1)  # 5
        moved = [transform_swiglu(normalised[:, t], W.W_gate, W.W_up, W.W_down) for t in columns]
        X = X + np.stack(moved, axis=1)  # 6
    X = np.stack([normalise_rms(X[:, t], g, eps) for t in columns], axis=1)  # 7
    return np.stack([unembed(X[:, t], W_u) for t in columns], axis=1)  # 8


def _softmax(A: Float[Array, "m n"]) -> Float[Array, "m n"]:
    """Return exp A[t_z, t_x] / Σ_t exp A[t, t_x]: every column sums to 1."""
    return np.exp(A) / np.exp(A).sum(axis=0)
