"""Multi-head attention against torch's own, and what follows from the formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from axon_core import ConfigError, validate
from axon_core.interfaces import Cache, Scope
from axon_core.testing import conformance
from axon_transformer import MultiHeadAttention

test_conformance = conformance("axon-transformer")

D, H = 32, 4


def pair(bias: bool) -> tuple[MultiHeadAttention, nn.MultiheadAttention]:
    """Two attentions with the same weights: Axon's and torch's."""
    torch.manual_seed(0)
    torchs = nn.MultiheadAttention(D, H, bias=bias, batch_first=True)
    if bias:
        nn.init.normal_(torchs.in_proj_bias)
        nn.init.normal_(torchs.out_proj.bias)
    ours = MultiHeadAttention(MultiHeadAttention.Config(dim=D, n_heads=H, bias=bias))
    names = {
        "in_proj_weight": "qkv.projection.weight",
        "in_proj_bias": "qkv.projection.bias",
        "out_proj.weight": "out.weight",
        "out_proj.bias": "out.bias",
    }
    ours.load_state_dict({names[name]: value for name, value in torchs.state_dict().items()})
    return ours, torchs


def tokens(n: int, seed: int = 1) -> Tensor:
    return torch.randn(2, n, D, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_equals_torchs(bias: bool, causal: bool) -> None:
    ours, torchs = pair(bias)
    x = tokens(6)
    hidden = torch.ones(6, 6, dtype=torch.bool).triu(1) if causal else None
    expected, _ = torchs(x, x, x, attn_mask=hidden, need_weights=False)
    torch.testing.assert_close(ours(x, Scope.over(x, causal=causal)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_cross_attention_equals_torchs(bias: bool) -> None:
    ours, torchs = pair(bias)
    x, memory = tokens(3), tokens(5, seed=2)
    valid = torch.tensor([[True] * 5, [True, True, False, False, False]])
    expected, _ = torchs(x, memory, memory, key_padding_mask=~valid, need_weights=False)
    torch.testing.assert_close(ours(x, Scope.across(x, valid), memory=memory), expected, rtol=1e-5, atol=1e-5)


def test_without_positions_the_order_of_the_tokens_means_nothing() -> None:
    ours, _ = pair(True)
    x, order = tokens(7), torch.tensor([3, 0, 6, 1, 5, 2, 4])
    everything = Scope.over(x, causal=False)
    torch.testing.assert_close(ours(x[:, order], everything), ours(x, everything)[:, order])


def test_the_cache_holds_the_keys_and_values_of_every_head() -> None:
    ours, _ = pair(True)
    x = tokens(9)
    cache = Cache([ours.state()], 2, 9, dtype=torch.float32, device="cpu")
    assert cache.nbytes == 2 * 9 * 2 * D * 4
    parts = []
    for part in x.split([5, 3, 1], 1):
        step = cache.extend(torch.zeros(part.shape[:2], dtype=torch.long))
        parts.append(ours(part, step.scope, cache=step.layers[0]))
    torch.testing.assert_close(torch.cat(parts, 1), ours(x, Scope.over(x)))


def test_head_dim_may_be_given_where_the_heads_do_not_divide() -> None:
    with pytest.raises(ConfigError, match="dim must be a multiple of n_heads, but 32 % 3 = 2"):
        validate(MultiHeadAttention.Config, {"dim": D, "n_heads": 3})
    config = validate(MultiHeadAttention.Config, {"dim": D, "n_heads": 3, "head_dim": 8})
    x = tokens(4)
    assert MultiHeadAttention(config)(x, Scope.over(x)).shape == x.shape
