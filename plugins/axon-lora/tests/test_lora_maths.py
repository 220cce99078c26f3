"""The equations: known answers, identities at the start, and a plain float64 reference."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from axon_core import MODELS, AxonError, ConfigError, Key, validate
from axon_core.nn import Linear, StackedLinear
from axon_lora import (
    AdapterSection,
    LowRank,
    LowRankUpdate,
    decomposed_weight,
    linear_maps,
    low_rank,
    low_rank_scale,
    merged_weight,
    updated_weight,
)
from axon_lora.low_rank import adapt
from axon_xllama import XLlama

W = torch.tensor([[1.0, 2.0, -1.0], [0.5, -1.0, 2.0]])
A = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, -1.0]])
B = torch.tensor([[0.5, 0.0], [0.0, -0.25]])
X = torch.tensor([[1.0, 2.0, 3.0]])


def known(scale: float, dora: bool = False) -> torch.Tensor:
    linear = Linear(3, 2, bias=False)
    linear.weight.data = W.clone()
    adapt(linear, LowRank(3, [LowRankUpdate(0, slice(0, 2), 2, scale)], magnitudes=dora))
    linear.adapter.a.data, linear.adapter.b[0].data = A.clone(), B.clone()
    return linear(X)


def test_known_answers_of_lora_rslora_and_dora():
    torch.testing.assert_close(Linear.forward(_linear(W), X), torch.tensor([[2.0, 4.5]]))
    torch.testing.assert_close(known(low_rank_scale(4, 2)), torch.tensor([[6.0, 5.0]]))
    torch.testing.assert_close(known(low_rank_scale(4, 2, stabilized=True)), torch.tensor([[7.656854, 5.207107]]))
    torch.testing.assert_close(known(low_rank_scale(4, 2), dora=True), torch.tensor([[5.196152, 3.872983]]))


def test_the_magnitudes_start_as_the_norms_of_the_rows():
    linear = _linear(W)
    adapt(linear, LowRank(3, [LowRankUpdate(0, slice(0, 2), 2, 2.0)], magnitudes=True))
    torch.testing.assert_close(linear.adapter.magnitude, torch.tensor([2.449490, 2.291288]))


def _linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
    linear = Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight.data = weight.clone()
    if bias is not None:
        linear.bias.data = bias.clone()
    return linear


@settings(max_examples=40, deadline=None)
@given(
    parts=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    seed=st.integers(0, 99),
    dora=st.booleans(),
    bias=st.booleans(),
    adapted=st.sets(st.integers(0, 3), min_size=1),
)
def test_a_stack_computes_what_its_matrices_would_and_merging_keeps_it(parts, seed, dora, bias, adapted):
    """In float64, against W' = (W + s B A) of each matrix by itself, scaled to its magnitudes with DoRA."""
    torch.manual_seed(seed)
    chosen = sorted(i for i in adapted if i < len(parts)) or [0]
    stack = StackedLinear(5, parts, bias=bias).double()
    ends = [0, *torch.tensor(parts).cumsum(0).tolist()]
    updates = [LowRankUpdate(i, slice(ends[i], ends[i + 1]), 1 + i % 2, 0.5 + i) for i in chosen]
    low_rank = LowRank(5, updates, magnitudes=dora, key=Key((seed,)))
    before = copy.deepcopy(stack)
    adapt(stack, low_rank.double())
    with torch.no_grad():
        for parameter in low_rank.parameters():
            parameter.copy_(torch.rand_like(parameter) + 0.1)
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    weight, a_of = before.weight.detach().clone(), low_rank.a.split([u.rank for u in updates])
    m_of = low_rank.magnitude.split([u.outputs for u in updates]) if dora else [None] * len(updates)
    for update, a, b, m in zip(updates, a_of, low_rank.b, m_of, strict=True):
        own = weight[update.rows] + update.scale * b @ a
        weight[update.rows] = own if m is None else m[:, None] * own / own.pow(2).sum(1, keepdim=True).sqrt()
    expected = torch.nn.functional.linear(x, weight, before.bias).split(parts, -1)
    for mine, right in zip(stack(x), expected, strict=True):
        torch.testing.assert_close(mine, right)
    if len(parts) > 1:
        torch.testing.assert_close(stack.compute_maps(x, 1, len(parts)), torch.cat(expected[1:], -1))
    merged = merged_weight(before.weight, updates, low_rank.a, [*low_rank.b], low_rank.magnitude)
    torch.testing.assert_close(merged, weight)


def test_merging_rounds_once():
    """A bfloat16 weight plus the update in float32, then rounded: not the update rounded first."""
    torch.manual_seed(0)
    weight, a, b = torch.randn(64, 32).bfloat16(), torch.randn(4, 32), torch.randn(64, 4) / 50
    once = (weight.double() + 0.5 * b.double() @ a.double()).float()
    merged = merged_weight(weight, [LowRankUpdate(0, slice(0, 64), 4, 0.5)], a, [b])
    torch.testing.assert_close(updated_weight(weight, a, b, 0.5), once)
    assert merged.dtype == torch.bfloat16
    assert (merged == updated_weight(weight, a, b, 0.5).bfloat16()).all()


def section(**options: object) -> AdapterSection:
    return AdapterSection(validate(AdapterSection.Config, {"type": "lora", **options}))


def small(**options: object) -> XLlama:
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "context": 16, "dim": 16, "n_layers": 2, "n_heads": 2, "attention": "MHA"}
    return XLlama.build(**{**sizes, **options})


@pytest.mark.parametrize("dora", [False, True])
def test_at_first_the_model_computes_what_it_did_and_only_b_has_a_gradient(dora: bool):
    model, tokens = small(), torch.arange(12).view(2, 6)
    before = model(tokens).detach()
    section(rank=2, dora=dora).attach(model)
    after = model(tokens)
    if dora:
        torch.testing.assert_close(after, before)
    else:
        assert torch.equal(after, before)
    after.sum().backward()
    for name, parameter in model.named_parameters():
        if ".adapter.a" in name:
            assert not parameter.grad.any(), name
        elif ".adapter." in name:
            assert parameter.grad.any(), name
        else:
            assert parameter.grad is None and not parameter.requires_grad, name


def test_dropout_acts_on_the_updates_alone():
    model, tokens = small(), torch.arange(12).view(2, 6)
    section(rank=2, dropout=0.5).attach(model)
    model.train()
    first = model(tokens)
    assert torch.equal(first, model(tokens))  # B is zero: what A sees does not matter
    for name, parameter in model.named_parameters():
        if ".adapter.b" in name:
            torch.nn.init.normal_(parameter)
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


def test_targets_name_maps_stacks_parts_and_layers():
    def adapted(*targets: str) -> set[str]:
        lora = section(rank=1, targets=list(targets)).adapter
        return {target.place for target, _ in lora.updates(small())}

    q = {f"blocks.{i}.attention.qkv.projection.q" for i in (0, 1)}
    assert adapted("q") == q
    assert adapted("q", "v") == q | {place.replace("projection.q", "projection.v") for place in q}
    assert adapted("blocks.0.attention.qkv.projection.q") == {min(q)}
    assert adapted("gate") == {f"blocks.{i}.feed_forward.gate_up.gate" for i in (0, 1)}
    assert len(adapted("all")) == 2 * 7
    assert adapted("all", "head") - adapted("all") == {"head"}
    assert adapted("attention") | adapted("feed_forward") == adapted("all")


def test_each_target_may_have_its_own_rank_and_alpha():
    lora = section(rank=4, alpha=8.0, ranks={"q": 2, "blocks.1": 3}, alphas={"v": 1}).adapter
    found = {target.place.removeprefix("blocks."): update for target, update in lora.updates(small())}
    assert (found["0.attention.qkv.projection.q"].rank, found["0.attention.qkv.projection.q"].scale) == (2, 4)
    assert found["1.attention.qkv.projection.q"].rank == 3
    assert (found["0.attention.qkv.projection.v"].rank, found["0.attention.qkv.projection.v"].scale) == (4, 0.25)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"targets": ["query"]}, "must name linear maps, got 'query', and there are all, blocks, attention"),
        (
            {"rank": 17},
            "at most 16, the smaller side of blocks.0.attention.qkv.projection.q, got 17; lower it, or",
        ),
        ({"ranks": {"k_proj": 2}}, "ranks.k_proj: must name some of the targets, got 'k_proj'"),
        ({"also": ["lm_head"]}, "also: must name parts of the model (embedding, blocks, norm, head), got 'lm_head'"),
        ({"also": ["attention"]}, "must not name what targets name too, got blocks.0.attention.out.weight"),
        ({"rank": 0}, "rank: must be greater than 0"),
        ({"type": "lroa"}, "lora"),
        ({"r": 8}, "unknown field 'r'"),
    ],
)
def test_options_that_do_not_suit_the_model_are_refused_by_name(options: dict, told: str):
    with pytest.raises(AxonError) as caught:
        section(**{"rank": 2, **options}).attach(small())
    assert told in str(caught.value)


def test_a_tied_head_is_refused_by_name():
    with pytest.raises(ConfigError, match="must not name head, whose weight is the embedding's too"):
        section(targets=["head"], rank=1).attach(small(tie_embeddings=True))
    with pytest.raises(ConfigError, match=r"also: .*got 'head', whose weight is another part's too; name that"):
        section(also=["head"], rank=1).attach(small(tie_embeddings=True))


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("compiling", [False, True])
def test_gradients_are_those_of_finite_differences(dora: bool, compiling: bool, monkeypatch: pytest.MonkeyPatch):
    """Of x, A, B and m; written into the base's output, and as a compiled pass does it. DoRA's norm is a constant."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    torch.manual_seed(0)
    stack = StackedLinear(4, (3, 2, 5), bias=True).double()
    stack.requires_grad_(False)
    updates = [LowRankUpdate(0, slice(0, 3), 2, 0.5), LowRankUpdate(2, slice(5, 10), 1, 2.0)]
    low_rank = LowRank(4, updates, magnitudes=dora, key=Key((0,))).double()
    adapt(stack, low_rank)
    for parameter in low_rank.parameters():
        parameter.data.add_(torch.rand_like(parameter))
    if dora:
        norms = [torch.linalg.vector_norm(torch.randn_like(parameter), dim=-1) for parameter in low_rank.b]
        monkeypatch.setattr(
            torch.linalg, "vector_norm", lambda whole, dim: norms[whole.shape[0] == 5][0].expand(len(whole))
        )
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    values = [x, *low_rank.parameters()]
    assert torch.autograd.gradcheck(lambda x, *_: torch.cat(stack(x), -1), values)


@pytest.mark.parametrize("shape", [(2, 3, 8), (6, 8)])
def test_outputs_are_overwritten_and_not_copied(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch):
    """What is added to is memory that the base's product has just made, whatever the shape of the inputs."""
    taken: list[int] = []
    original = low_rank._AddInPlace.forward

    def noted(ctx: Any, y: torch.Tensor, *rest: Any) -> torch.Tensor:
        taken.append(y.data_ptr())
        return original(ctx, y, *rest)

    monkeypatch.setattr(low_rank._AddInPlace, "forward", staticmethod(noted))
    linear = Linear(8, 5)
    adapt(linear, LowRank(8, [LowRankUpdate(0, slice(0, 5), 2, 1.0)]))
    y = linear(torch.randn(shape))
    assert y.shape == (*shape[:-1], 5) and taken == [y.data_ptr()]


def test_a_hidden_map_of_as_many_outputs_as_there_are_tokens_is_no_head():
    model = MODELS["xllama"].build(vocab_size=32, context=16, dim=32, n_layers=1, n_heads=2, hidden_dim=48)
    found = {*linear_maps(model)}
    assert {"blocks.0.attention.out", "blocks.0.feed_forward.down"} <= found and "head" not in found


def test_a_row_of_zeros_has_no_direction_and_stays_one():
    weight = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    linear = nn.Linear(2, 2, bias=False)
    linear.weight.data.copy_(weight)
    adapt(linear, LowRank(2, [LowRankUpdate(0, slice(0, 2), 1, 1.0)], magnitudes=True))
    y = linear(torch.ones(1, 2))
    y.sum().backward()
    assert y.tolist() == [[0.0, 7.0]] and torch.isfinite(linear.adapter.b[0].grad).all()
    assert torch.equal(decomposed_weight(weight, torch.tensor([0.0, 5.0])), weight)


def test_a_model_is_not_adapted_twice():
    model = MODELS["xllama"].build(vocab_size=31, context=16, dim=32, n_layers=1, n_heads=2, hidden_dim=48)
    section = AdapterSection(validate(AdapterSection.Config, {"rank": 2}))
    section.attach(model)
    with pytest.raises(ConfigError, match=r"changed by \[adapter\] already"):
        section.attach(model)
