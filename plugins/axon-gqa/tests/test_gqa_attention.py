"""Grouped-query attention: its two ends, its layout, its cache and its errors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from axon_core import ATTENTIONS, NORMS, ROTARY_EMBEDDINGS, ConfigError, Norm, validate
from axon_core.interfaces import Cache, Scope
from axon_core.testing import PlainRotary, conformance
from axon_gqa import GroupedQueryAttention, MultiQueryAttention

test_conformance = conformance("axon-gqa")

D, H = 32, 4


def gqa(n_kv_heads: int, **options: object) -> GroupedQueryAttention:
    torch.manual_seed(0)
    config = validate(GroupedQueryAttention.Config, {"dim": D, "n_heads": H, "n_kv_heads": n_kv_heads, **options})
    return GroupedQueryAttention(config, PlainRotary(PlainRotary.Config(dim=config.head_dim)))


def tokens(n: int = 6, seed: int = 1) -> Tensor:
    return torch.randn(2, n, D, generator=torch.Generator().manual_seed(seed))


def test_with_as_many_groups_as_heads_it_is_multi_head_attention() -> None:
    grouped = gqa(H)
    multi_head = ATTENTIONS["axon-transformer:MHA"]
    mha = multi_head(multi_head.Config(dim=D, n_heads=H), grouped.rotary)
    mha.load_state_dict(grouped.state_dict())
    x = tokens()
    assert torch.equal(grouped(x, Scope.over(x)), mha(x, Scope.over(x)))


def test_with_one_group_it_is_multi_query_attention() -> None:
    grouped, x = gqa(1), tokens()
    mqa = MultiQueryAttention(MultiQueryAttention.Config(dim=D, n_heads=H), grouped.rotary)
    mqa.load_state_dict(grouped.state_dict())
    assert torch.equal(grouped(x, Scope.over(x)), mqa(x, Scope.over(x)))
    q, k, v = grouped.qkv(x)  # the formula of multi-query attention: one key head and one value head for all
    q, k = Scope.over(x).rotate(grouped.rotary, q, k)
    heads = [scaled_dot_product_attention(q[:, :, i], k[:, :, 0], v[:, :, 0], is_causal=True) for i in range(H)]
    torch.testing.assert_close(grouped(x, Scope.over(x)), grouped.out(torch.cat(heads, -1)))


def test_it_is_multi_head_attention_with_repeated_heads() -> None:
    grouped, every, x = gqa(2), gqa(H), tokens()
    q, k, v = grouped.qkv.projection.weight.split(grouped.qkv.projection.rows)
    repeated = [w.unflatten(0, (2, 8)).repeat_interleave(H // 2, 0).flatten(0, 1) for w in (k, v)]
    every.load_state_dict(grouped.state_dict() | {"qkv.projection.weight": torch.cat((q, *repeated))})
    torch.testing.assert_close(grouped(x, Scope.over(x)), every(x, Scope.over(x)))


@pytest.mark.parametrize(("n_kv_heads", "groups"), [(1, [0, 0, 0, 0]), (2, [0, 0, 1, 1]), (4, [0, 1, 2, 3])])
def test_query_head_h_reads_key_value_head_h_div_r(n_kv_heads: int, groups: list[int]) -> None:
    attention = gqa(n_kv_heads, bias=True)
    with torch.no_grad():  # the value head g is g everywhere, and the output is what the heads give
        _, _, values = attention.qkv.projection.weight.split(attention.qkv.projection.rows)
        values.zero_()
        _, _, values = attention.qkv.projection.bias.split(attention.qkv.projection.rows)
        values.copy_(torch.arange(n_kv_heads).repeat_interleave(D // H))
        attention.out.weight.copy_(torch.eye(D))
        attention.out.bias.zero_()
    x = tokens()
    out = attention(x, Scope.over(x)).unflatten(-1, (H, D // H))
    torch.testing.assert_close(out, torch.tensor(groups).float()[:, None].expand_as(out))


def test_the_cache_holds_key_value_heads_before_they_are_repeated() -> None:
    for n_kv_heads in (1, 2, 4):
        attention, x = gqa(n_kv_heads), tokens()
        cache = Cache([attention.state()], 2, 10, dtype=torch.float32, device="cpu")
        assert cache.nbytes == 2 * 10 * 2 * n_kv_heads * (D // H) * 4  # rows, tokens, k and v, heads, size, bytes
        whole = attention(x, Scope.over(x))
        parts = [
            attention(part, step.scope, cache=step.layers[0])
            for part in x.split([3, 1, 2], 1)
            for step in [cache.extend(torch.zeros(part.shape[:2], dtype=torch.long))]
        ]
        torch.testing.assert_close(torch.cat(parts, 1), whole)


def test_cross_attention_reads_the_memory_without_positions() -> None:
    attention, x, memory = gqa(2), tokens(3), tokens(5, seed=2)
    valid = torch.tensor([[True] * 5, [True, True, False, False, False]])
    out = attention(x, Scope.across(x, valid), memory=memory)
    shuffled = torch.tensor([4, 2, 0, 1, 3])  # the order of a memory means nothing to it
    again = attention(x, Scope.across(x, valid[:, shuffled]), memory=memory[:, shuffled])
    torch.testing.assert_close(out, again)
    short = attention(x[1:], Scope.across(x[1:], valid[1:, :2]), memory=memory[1:, :2])
    torch.testing.assert_close(out[1:], short)
    attention.rotary = None
    assert torch.equal(out, attention(x, Scope.across(x, valid), memory=memory))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_heads": 6, "n_kv_heads": 4}, "n_kv_heads must divide n_heads, but 6 % 4 = 2; 6 heads allow 1, 2, 3, 6"),
        ({"n_kv_heads": 8}, "n_kv_heads must divide n_heads, but 4 % 8 = 4"),
        ({"n_kv_heads": 0}, "n_kv_heads: must be greater than 0, got 0"),
        ({"n_heads": 5}, "dim must be a multiple of n_heads, but 32 % 5 = 2"),
        ({"n_heads": -1}, "n_heads: must be greater than 0, got -1"),
        ({"n_kv_head": 2}, "unknown field 'n_kv_head' (did you mean 'n_kv_heads'?)"),
    ],
)
def test_a_size_that_does_not_fit_is_named(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(GroupedQueryAttention.Config, {"dim": D, "n_heads": H, **options})
    assert message in str(error.value)


def test_multi_query_attention_has_one_key_value_head_whatever_is_asked() -> None:
    with pytest.raises(ConfigError, match="n_kv_heads: must be less than or equal to 1, got 2"):
        validate(MultiQueryAttention.Config, {"dim": D, "n_heads": H, "n_kv_heads": 2})


@pytest.mark.parametrize(("n_heads", "default"), [(1, 1), (2, 1), (8, 4), (9, 3), (7, 1), (6, 3)])
def test_the_default_is_the_most_groups_short_of_multi_head(n_heads: int, default: int) -> None:
    assert GroupedQueryAttention.Config(dim=n_heads * 4, n_heads=n_heads).n_kv_heads == default


class Doubling(Norm):
    """No norm at all, but easy to tell."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_query_key_normalisation_is_the_named_norm_of_every_head() -> None:
    plain = gqa(2)
    with NORMS.override(doubling=Doubling):
        normed = gqa(2, qk_norm="doubling")
    normed.load_state_dict(plain.state_dict())
    assert normed.q_norm.config.dim == normed.k_norm.config.dim == D // H
    with torch.no_grad():
        for rows in plain.qkv.projection.weight.split(plain.qkv.projection.rows)[:2]:
            rows.mul_(2)
    x = tokens()
    torch.testing.assert_close(normed(x, Scope.over(x)), plain(x, Scope.over(x)))


@pytest.mark.parametrize("cross", [False, True])
def test_multi_head_attention_normalises_queries_and_keys_as_grouped_query_attention_does(cross: bool) -> None:
    """So that another attention in a recipe changes nothing but the number of key/value heads."""
    rotary = None if cross else ROTARY_EMBEDDINGS.build("rotary", dim=D // H, context=16)
    ours = ATTENTIONS.build("GQA", dim=D, n_heads=H, n_kv_heads=H, qk_norm="layernorm", rotary=rotary)
    multi_head = ATTENTIONS.build("MHA", dim=D, n_heads=H, qk_norm="layernorm", rotary=rotary)
    for norm in (ours.q_norm, ours.k_norm):
        nn.init.normal_(norm.weight)
    multi_head.load_state_dict(ours.state_dict())
    x, memory = tokens(), tokens()[:, :3] if cross else None
    scope = Scope.across(x, torch.ones(memory.shape[:2], dtype=torch.bool)) if cross else Scope.over(x)
    expected = ours(x, scope, memory=memory)
    torch.testing.assert_close(multi_head(x, scope, memory=memory), expected)
    nn.init.normal_(multi_head.k_norm.weight)
    assert not torch.allclose(multi_head(x, scope, memory=memory), expected)
