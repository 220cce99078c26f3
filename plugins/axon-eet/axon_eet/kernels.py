"""Products and attention whose rows do not depend on their number: plain, and slow."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from axon_core import widen
from axon_core.interfaces import Between, CausalLM
from axon_core.nn import Linear, StackedLinear, affine


class _Rows(nn.Module):
    def __init__(self, original: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = original.weight, original.bias
        self.rows = original.rows if isinstance(original, StackedLinear) else None

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        flat = x.reshape(-1, 1, x.shape[-1])
        y = torch.cat([affine(row, self.weight, self.bias) for row in flat]).view(*x.shape[:-1], -1)
        return y if self.rows is None else torch.split(y, self.rows, -1)


def pack(model: CausalLM) -> CausalLM:
    """Return a copy of `model` that shares its weights and computes each row of its linear maps by itself."""
    replaced = {
        id(t): nn.Parameter(t.detach(), requires_grad=False) if isinstance(t, nn.Parameter) else t.detach()
        for t in (*model.parameters(), *model.buffers())
    }
    model = copy.deepcopy(model, replaced)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) in (nn.Linear, Linear, StackedLinear):
                setattr(module, name, _Rows(child))
    return model


def block_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: Tensor,
    owners: Tensor,
    positions: Tensor,
    scale: float | None = None,
    narrow: Between | None = None,
    bias: Between | None = None,
) -> Tensor:
    """Q (n h d), k (blocks size k d), v, tables (r t), owners (n), positions (n) -> (n h e)."""
    n, h, d = q.shape
    out = q.new_empty(n, h, v.shape[-1])
    scale = d**-0.5 if scale is None else scale
    for i in range(n):
        m = int(positions[i]) + 1
        table = tables[owners[i]][: -(-m // k.shape[1])]
        keys, values = (widen(pool[table].flatten(0, 1)[:m]) for pool in (k, v))
        r = h // keys.shape[1]
        keys, values = (x.transpose(0, 1).repeat_interleave(r, 0) for x in (keys, values))
        scores = (widen(q[i])[:, None] * scale * keys).sum(-1)
        query, key = positions[i].view(1, 1, 1, 1), torch.arange(m).view(1, 1, 1, m)
        if bias is not None:
            scores = scores + bias(query, key)[0, :, 0].to(scores.dtype)
        if narrow is not None:
            scores = scores.masked_fill(~narrow(query, key)[0, :, 0], float("-inf"))
        out[i] = (scores.softmax(-1)[..., None] * values).sum(1).to(q.dtype)
    return out
