"""Multi-head checkpoints to grouped-query ones: mean-pooling the key and value heads of each group."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from axon_core.attend import QKV
from axon_core.config import Spec, validate
from axon_core.errors import UsageError
from axon_core.interfaces.attention import Attention
from axon_core.interfaces.model import Model
from axon_gqa.attention import GroupedQueryAttention

L = TypeVar("L", bound=Model)
M = TypeVar("M", bound=nn.Module)
Pool = Callable[[Tensor, int, int], Tensor]
"""Makes a projection with fewer heads from the rows of one with more, given both numbers, as `mean_pool` does."""


def mean_pool(rows: Float[Tensor, "rows ..."], n_heads: int, n_kv_heads: int) -> Float[Tensor, "pooled ..."]:
    """Average the `n_heads` heads of a key or value projection into `n_kv_heads`, neighbours together.

    W_g = G/H Σ W_h over the H/G heads h of group g: a weight `(h·d D) -> (k·d D)`, or a bias without its last axis.
    Source: arXiv 2305.13245, Section 2.2.

    Raises:
        UsageError: `n_kv_heads` does not divide `n_heads`, or `n_heads` does not divide the rows.
    """
    if n_heads % n_kv_heads or rows.shape[0] % n_heads:
        raise UsageError(
            "n_kv_heads must divide n_heads, and n_heads the rows of the projection, "
            f"but they are {n_kv_heads}, {n_heads} and {rows.shape[0]}"
        )
    return rows.unflatten(0, (n_kv_heads, n_heads // n_kv_heads, -1)).mean(1).flatten(0, 1)


def convert_attention(attention: Attention, n_kv_heads: int, *, pool: Pool = mean_pool) -> GroupedQueryAttention:
    """Return grouped-query attention with `n_kv_heads` whose key and value heads are means of `attention`'s.

    Queries and output are as they were. Works for every attention that consists of projections `qkv` (`QKV`) and
    `out`, as multi-head and grouped-query attention do. Another `pool` makes the heads in another way, as the paper's
    ablation does (Section 3.3). Source: arXiv 2305.13245, Sections 2.1 and 2.2.

    Raises:
        ConfigError: `n_kv_heads` does not divide the heads.
        UsageError: the attention consists of other parameters, or has fewer key/value heads already.
    """
    options = attention.config.model_dump()
    config = validate(
        GroupedQueryAttention.Config,
        {name: options[name] for name in GroupedQueryAttention.Config.model_fields if name in options}
        | {"n_kv_heads": n_kv_heads},
    )
    converted = GroupedQueryAttention(config, attention.rotary)
    return _load(converted, attention, n_kv_heads, pool)


def convert_model(model: L, n_kv_heads: int) -> L:
    """Return `model` rebuilt with grouped-query attention, its key and value heads mean-pooled.

    The model's config must name its attention in a field `attention`, as X-Llama's does. The result scores worse than
    `model` until it has been trained for a few more steps: 5 % of the original ones in the paper (Section 3.1).

    Raises:
        ConfigError: `n_kv_heads` does not divide the heads.
        UsageError: the model has no field `attention`, or one that consists of other parameters.
    """
    spec = getattr(model.config, "attention", None)
    if not isinstance(spec, Spec):
        raise UsageError(
            f"convert_model rebuilds a model whose config has a field 'attention', which {type(model).__name__} has "
            "not; convert its attentions one by one with convert_attention"
        )
    options = {**spec.options, "type": GroupedQueryAttention, "n_kv_heads": n_kv_heads}
    converted = type(model).build(**{**model.config.model_dump(), "attention": options})
    return _load(converted, model, n_kv_heads, mean_pool)


def _load(new: M, old: nn.Module, n_kv_heads: int, pool: Pool) -> M:
    """Copy the parameters of `old` into `new`, pooling the keys and values of every `QKV` on the way."""
    state = old.state_dict()
    for name, module in old.named_modules():
        if isinstance(module, QKV):
            for parameter, rows in module.projection.named_parameters(f"{name}.projection"):
                q, k, v = rows.detach().split(module.projection.rows)
                pooled = (pool(part, module.heads[1], n_kv_heads) for part in (k, v))
                state[parameter] = torch.cat((q, *pooled))
    try:
        new.load_state_dict(state)
    except RuntimeError as error:
        raise UsageError(
            f"{type(old).__name__} cannot become grouped-query attention: its projections must be named `qkv` (a "
            f"QKV) and `out`, but its parameters do not fit ({str(error).splitlines()[-1].strip()})"
        ) from error
    reference = next(old.parameters())
    return new.to(reference.device, reference.dtype).train(old.training)
