"""Multi-head checkpoints to grouped-query ones: mean-pooling the key and value heads of each group."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from axon_core import UsageError, validate
from axon_core.checkpoint import weightless
from axon_core.interfaces import Attention, Model
from axon_core.nn import QKV
from axon_core.registry import Spec
from axon_gqa.attention import GroupedQueryAttention

L = TypeVar("L", bound=Model)
M = TypeVar("M", bound=nn.Module)
Pool = Callable[[Tensor, int, int], Tensor]
"""Makes a projection with fewer heads from the rows of one with more, given both numbers, as `mean_pool` does."""


def mean_pool(rows: Float[Tensor, "rows ..."], n_heads: int, n_kv_heads: int) -> Float[Tensor, "pooled ..."]:
    """Average the `n_heads` heads of a key or value projection into `n_kv_heads`, each the mean of neighbours.

    W_g = G/H Σ W_h over the H/G heads h of group g: a weight `(h·d D) -> (k·d D)`, or a bias without its last axis.
    Source: arXiv 2305.13245, Section 2.2.

    Raises:
        UsageError: `n_kv_heads` does not divide `n_heads`, or `n_heads` does not divide the rows.
    """
    _check_groups(n_heads, n_kv_heads)
    if rows.shape[0] % n_heads:
        raise UsageError(f"n_heads must divide the rows of the projection, got {n_heads} and {rows.shape[0]}")
    return rows.unflatten(0, (n_kv_heads, n_heads // n_kv_heads, -1)).mean(1).flatten(0, 1)


def convert_attention(attention: Attention, n_kv_heads: int, *, pool: Pool = mean_pool) -> GroupedQueryAttention:
    """Return grouped-query attention with `n_kv_heads` whose key and value heads are means of `attention`'s.

    Queries and output are unchanged. Works for every attention that consists of projections `qkv` (`QKV`) and
    `out`, as multi-head and grouped-query attention do. A different `pool` makes the heads differently, as in the
    paper's ablation (Section 3.3). Source: arXiv 2305.13245, Sections 2.1 and 2.2.

    Raises:
        UsageError: `n_kv_heads` does not divide the key/value heads of the attention, or it has options or parameters
            that grouped-query attention does not have.
    """
    config = _config(attention, n_kv_heads)
    with weightless():
        converted = GroupedQueryAttention(config, attention.rotary)
    return _fill(converted, attention, n_kv_heads, pool)


def convert_model(model: L, n_kv_heads: int) -> L:
    """Return `model` rebuilt with grouped-query attention, its key and value heads mean-pooled.

    The model's config must name its attention in a field `attention`, as X-Llama's does. The result scores worse than
    `model` until it has been trained for a few more steps: 5 % of the original ones in the paper (Section 3.1).

    Raises:
        UsageError: as for `convert_attention`; or the model has no field `attention`.
    """
    spec = getattr(model.config, "attention", None)
    if not isinstance(spec, Spec):
        raise UsageError(
            f"convert_model needs a model whose config has a field 'attention', but {type(model).__name__} has "
            "none; convert its attentions one by one with convert_attention"
        )
    for attention in _attentions(model):
        _config(attention, n_kv_heads)
    options = {**spec.options, "type": GroupedQueryAttention, "n_kv_heads": n_kv_heads}
    with weightless():
        converted = type(model).build(**{**model.config.model_dump(), "attention": options})
    return _fill(converted, model, n_kv_heads, mean_pool)


def _check_groups(n_heads: int, n_kv_heads: int) -> None:
    possible = [groups for groups in range(1, n_heads + 1) if n_heads % groups == 0]
    if n_kv_heads not in possible:
        raise UsageError(
            f"the number of groups must divide the number of key/value heads, got {n_kv_heads} for {n_heads}; "
            f"possible: {', '.join(map(str, possible))}"
        )


def _config(attention: Attention, n_kv_heads: int) -> GroupedQueryAttention.Config:
    """Return the config of the grouped-query attention that `attention` is to become, after checking that it can.

    Equal parameters are not enough: a window or a bias of the scores would be lost silently.
    """
    given, target = attention.config, GroupedQueryAttention.Config
    _check_groups(getattr(given, "n_kv_heads", given.n_heads), n_kv_heads)
    if foreign := sorted(type(given).model_fields.keys() - target.model_fields.keys()):
        raise _unlike(attention, f"which has no option {', '.join(foreign)}")
    config = validate(target, {**given.model_dump(), "n_kv_heads": n_kv_heads})
    if config.rotary_dim != given.rotary_dim:
        raise _unlike(attention, f"which rotates {config.rotary_dim} features of a head, not {given.rotary_dim}")
    return config


def _fill(new: M, old: nn.Module, n_kv_heads: int, pool: Pool) -> M:
    """Give `new`, as `weightless` builds it, copies of what `old` holds, the keys and values of each `QKV` pooled."""
    copies: dict[int, Tensor] = {}  # by identity: tied weights stay tied
    for module in old.modules():
        if isinstance(module, QKV):
            for parameter in module.projection.parameters():
                q, k, v = parameter.detach().split(module.projection.rows)
                pooled = (pool(part, module.heads[1], n_kv_heads) for part in (k, v))
                copies[id(parameter)] = nn.Parameter(torch.cat((q, *pooled)))
    state = old.state_dict(keep_vars=True)
    for tensor in state.values():
        if id(tensor) not in copies:
            copy = tensor.detach().clone()
            copies[id(tensor)] = nn.Parameter(copy) if isinstance(tensor, nn.Parameter) else copy
    try:
        new.load_state_dict({name: copies[id(tensor)] for name, tensor in state.items()}, assign=True)
    except RuntimeError as error:
        mismatch = str(error).strip().rpartition("\n")[2].strip()
        raise _unlike(
            old, f"whose projections are `qkv` (a QKV) and `out`: the parameters differ ({mismatch})"
        ) from error
    return new.to(next(old.parameters()).device).train(old.training)  # buffers that are in no state dict move here


def _attentions(module: nn.Module) -> list[Attention]:
    return [part for part in module.modules() if isinstance(part, Attention)]


def _unlike(module: nn.Module, why: str) -> UsageError:
    names = sorted({type(attention).__name__ for attention in _attentions(module)})
    return UsageError(f"{' and '.join(names)} cannot become grouped-query attention, {why}")
