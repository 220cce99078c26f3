"""Multi-head to grouped-query attention: what it must leave unchanged, and what it averages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from axon_core import ATTENTIONS, MODELS, UsageError
from axon_core.interfaces import Attention, CausalLM, Model, Scope
from axon_gqa import convert_attention, convert_model, mean_pool
from axon_gqa.ablation import first_head, random_heads

D, H, SIZE = 32, 4, 8
MHA = "axon-transformer:MHA"


def multi_head(**options: object) -> Attention:
    torch.manual_seed(0)
    cls = ATTENTIONS[MHA]
    return cls(cls.Config(dim=D, n_heads=H, **options))


def language_model(attention: object, **options: object) -> CausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 17, "context": 16, "dim": D, "n_layers": 2, "n_heads": H}
    return MODELS["xllama"].build(attention=attention, **sizes, **options)


def duplicate_heads(module: nn.Module, n_kv_heads: int) -> None:
    """Make the key and value heads of each group equal to the group's first."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "qkv" in name:
                for part in parameter.split(H * SIZE)[1:]:
                    heads = part.unflatten(0, (n_kv_heads, H // n_kv_heads, SIZE))
                    heads.copy_(heads[:, :1].expand_as(heads).clone())


def half_from_interleaved(rows: Tensor, heads: int) -> Tensor:
    """Permute the rows of a projection from Meta's rotary layout to Hugging Face's."""
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def test_a_known_mean() -> None:
    weight = torch.tensor([[0.0, 1], [2, 3], [4, 5], [6, 7]])  # four heads of one row
    assert mean_pool(weight, 4, 2).tolist() == [[1, 2], [5, 6]]
    assert mean_pool(weight[:, 0], 4, 1).tolist() == [3]  # a bias


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_pooling_twice_is_pooling_once_and_equal_heads_stay(k: int, r: int, again: int, half: int) -> None:
    heads, size = k * r * again, 2 * half
    weight = torch.randn(heads * size, 5, dtype=torch.float64)
    assert torch.equal(mean_pool(weight, heads, heads), weight)
    torch.testing.assert_close(mean_pool(mean_pool(weight, heads, k * r), k * r, k), mean_pool(weight, heads, k))
    repeated = weight.unflatten(0, (heads, size)).repeat_interleave(r, 0).flatten(0, 1)
    torch.testing.assert_close(mean_pool(repeated, heads * r, heads), weight)
    torch.testing.assert_close(  # the rotary layout may be changed before or after
        mean_pool(half_from_interleaved(weight, heads), heads, k),
        half_from_interleaved(mean_pool(weight, heads, k), k),
    )


def test_heads_that_cannot_be_grouped_are_an_error() -> None:
    for heads in (3, 8, 0):
        message = (
            f"the number of groups must divide the number of key/value heads, got {heads} for 4; possible: 1, 2, 4"
        )
        with pytest.raises(UsageError, match=message):
            mean_pool(torch.zeros(32, 5), 4, heads)
        with pytest.raises(UsageError, match=message):
            convert_attention(multi_head(), heads)
        with pytest.raises(UsageError, match=message):
            convert_model(language_model(MHA), heads)
    with pytest.raises(UsageError, match="n_heads must divide the rows of the projection, got 4 and 30"):
        mean_pool(torch.zeros(30, 5), 4, 1)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_an_attention_with_equal_heads_in_each_group_computes_the_same(bias: bool, n_kv_heads: int) -> None:
    attention, x = multi_head(bias=bias), torch.randn(2, 6, D, generator=torch.Generator().manual_seed(1))
    duplicate_heads(attention, n_kv_heads)
    converted = convert_attention(attention, n_kv_heads)
    assert converted.config.n_kv_heads == n_kv_heads
    torch.testing.assert_close(converted(x, Scope.over(x)), attention(x, Scope.over(x)))


def test_each_head_of_a_converted_attention_is_the_mean_of_its_group() -> None:
    attention = multi_head()
    q, k, v = attention.qkv.projection.weight.split(H * SIZE)
    new_q, new_k, new_v = convert_attention(attention, 2).qkv.projection.weight.split((H * SIZE, 2 * SIZE, 2 * SIZE))
    assert torch.equal(new_q, q)
    for new, old in ((new_k, k), (new_v, v)):
        torch.testing.assert_close(new[SIZE:], (old[2 * SIZE : 3 * SIZE] + old[3 * SIZE :]) / 2)


def test_dtypes_and_mode_are_kept_and_the_original_is_untouched() -> None:
    attention = multi_head().to(torch.bfloat16).eval()
    state = torch.get_rng_state()
    before = {name: value.clone() for name, value in attention.state_dict().items()}
    converted = convert_attention(attention, 2)
    assert torch.equal(torch.get_rng_state(), state)  # no weights are drawn, only to be replaced
    assert not converted.training
    assert {p.dtype for p in converted.parameters()} == {torch.bfloat16}
    assert all(p.requires_grad for p in converted.parameters())
    converted.out.weight.data.zero_()
    assert all(torch.equal(attention.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("attention", [MHA, {"type": "GQA", "n_kv_heads": H}])
@pytest.mark.parametrize("tie", [False, True])
def test_a_model_with_equal_heads_in_each_group_gives_the_same_logits(attention: object, tie: bool) -> None:
    model = language_model(attention, tie_embeddings=tie)
    duplicate_heads(model, 2)
    converted = convert_model(model, 2)
    tokens = torch.arange(20).view(2, 10) % 17
    torch.testing.assert_close(converted(tokens), model(tokens))
    pooled = 2 * 2 * (2 * SIZE * D)  # layers, keys and values, two heads fewer: tied embeddings still count once
    assert converted.n_parameters == model.n_parameters - pooled
    assert converted.new_cache(1, 8).nbytes * 2 == model.new_cache(1, 8).nbytes


def test_as_many_groups_as_heads_change_nothing() -> None:
    model = language_model(MHA)
    tokens = torch.arange(20).view(2, 10) % 17
    assert torch.equal(convert_model(model, H)(tokens), model(tokens))


def test_a_converted_model_is_saved_and_loaded_like_any_other(tmp_path: Path) -> None:
    converted = convert_model(language_model(MHA), 2)
    converted.save(tmp_path / "model")
    loaded = Model.load(tmp_path / "model")
    tokens = torch.arange(20).view(2, 10) % 17
    assert torch.equal(loaded(tokens), converted(tokens))
    assert loaded.new_cache(1, 8).nbytes == converted.new_cache(1, 8).nbytes


def test_fewer_heads_cannot_become_more() -> None:
    attention = convert_attention(multi_head(), 1)
    with pytest.raises(UsageError, match="got 2 for 1; possible: 1"):
        convert_attention(attention, 2)


def test_what_is_not_made_of_qkv_and_out_is_refused() -> None:
    class Other(Attention):
        """An attention of other parameters."""

        def __init__(self, config: Attention.Config) -> None:
            super().__init__(config)
            self.everything = nn.Linear(config.dim, config.dim)

        def forward(self, x, scope, *, memory=None, cache=None):
            return self.everything(x)

    with pytest.raises(
        UsageError, match=r"Other cannot become grouped-query attention, whose projections are .*everything"
    ):
        convert_attention(Other(Other.Config(dim=D, n_heads=H)), 2)

    class Windowed(ATTENTIONS[MHA]):
        """Multi-head attention that sees less, with the same parameters."""

        class Config(ATTENTIONS[MHA].Config):
            """Its sizes."""

            window: int = 4

    class Unrotated(ATTENTIONS[MHA]):
        """Multi-head attention without rotary positions, with the same parameters."""

        class Config(ATTENTIONS[MHA].Config):
            """Its sizes."""

            @property
            def rotary_dim(self) -> int:
                return 0

    with ATTENTIONS.override(windowed=Windowed, unrotated=Unrotated):
        for name, message in (
            ("windowed", "Windowed cannot become grouped-query attention, which has no option window"),
            ("unrotated", "Unrotated cannot become grouped-query attention, which rotates 8 features of a head, not 0"),
        ):
            with pytest.raises(UsageError, match=message):
                convert_model(language_model(name), 2)

    class NoAttention(Model):
        """A model without a field `attention`."""

    with pytest.raises(UsageError, match="NoAttention has none; convert its attentions one by one"):
        convert_model(NoAttention(NoAttention.Config()), 2)


def test_the_other_ways_of_the_ablation() -> None:
    weight = torch.arange(8.0).view(8, 1).expand(8, 25)  # four heads of two rows
    assert first_head(weight, 4, 2)[:, 0].tolist() == [0, 1, 4, 5]
    fresh = [random_heads(torch.Generator().manual_seed(seed))(weight, 4, 2) for seed in (0, 0, 1)]
    assert torch.equal(fresh[0], fresh[1])
    assert not torch.equal(fresh[0], fresh[2])
    assert fresh[0].shape == (4, 25)
    assert fresh[0].abs().max() <= 0.2  # 25^−½, as a new linear layer
