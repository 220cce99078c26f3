"""Positions and visibility: a naive definition, padding on either side, documents, windows, cross-attention."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from axon_core.interfaces.rotary_embedding import RotaryEmbedding, Rotation
from axon_core.interfaces.scope import Scope
from axon_core.nn.attention import attend


@dataclass(frozen=True)
class Window:
    size: int

    def __call__(self, query: Tensor, key: Tensor) -> Tensor:
        return query - key < self.size


class Turn(RotaryEmbedding):
    """Turns by the position in radians, and counts how often it is asked."""

    calls = 0

    def forward(self, positions: Tensor) -> Rotation:
        self.calls += 1
        return Rotation.of(positions.unsqueeze(-1).float(), "half")


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[list[bool]], list[list[int]] | None]:
    """Rows padded on the left or on the right, and, or not, the document of every token."""
    n = draw(st.integers(1, 8))
    valid, documents = [], []
    for _ in range(draw(st.integers(1, 3))):
        padding = [False] * draw(st.integers(0, n))
        row = [True] * (n - len(padding))
        valid.append(padding + row if draw(st.booleans()) else row + padding)
        documents.append(draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)))
    return valid, documents if draw(st.booleans()) else None


def sees(i: int, j: int, valid: list[bool], documents: list[int], causal: bool, window: int | None) -> bool:
    """Whether token i sees token j, from the words of the documentation alone."""
    low, high = min(i, j), max(i, j)
    same_document = len(set(documents[low : high + 1])) == 1  # an unbroken run of the same number
    near = window is None or i - j < window
    return valid[j] and same_document and near and (j <= i or not causal)


@settings(deadline=None, max_examples=100)
@given(rows(), st.booleans(), st.sampled_from([None, 1, 3]))
def test_the_mask_is_what_the_documentation_says(given_rows, causal: bool, window: int | None) -> None:
    valid, documents = given_rows
    scope = Scope.over(
        torch.tensor(valid),
        causal=causal,
        valid=torch.tensor(valid),
        documents=None if documents is None else torch.tensor(documents),
    )
    n = len(valid[0])
    mask = scope.mask(n, None if window is None else Window(window)).expand(len(valid), 1, n, n)
    for row, tokens in enumerate(valid):
        numbers = [0] * n if documents is None else documents[row]
        for i in range(n):
            if tokens[i]:
                expected = [sees(i, j, tokens, numbers, causal, window) for j in range(n)]
                assert mask[row, 0, i].tolist() == expected
            else:
                assert mask[row, 0, i, i]


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 6), st.integers(0, 6), st.booleans(), st.booleans(), st.booleans())
def test_the_short_cuts_agree_with_the_mask(n: int, past: int, causal: bool, padded: bool, packed: bool) -> None:
    past, packed = (0, True) if packed else (past, False)
    keys = torch.arange(past + n).unsqueeze(0)
    if padded:
        keys = (keys - 1).clamp(min=-1)
    documents = torch.zeros(1, n, dtype=torch.long) if packed else None
    scope = Scope(keys[:, past:], keys, causal=causal, padded=padded, documents=documents)
    for m in [n] if packed else range(n, past + n + 1):
        mask = scope.mask(m)[0, 0]
        assert mask.shape == (n, m)
        assert not scope.sees_all(m) or bool(mask.all())
        assert not scope.triangular(m) or torch.equal(mask, torch.ones(n, m, dtype=torch.bool).tril(m - n))
        if not padded and not packed:  # and they are taken where they can be
            assert scope.sees_all(m) == (n == 1 or not causal)
            assert scope.triangular(m) == causal


def test_positions_count_the_valid_tokens_of_each_document() -> None:
    valid = torch.tensor([[False, False, True, True, True], [True, True, True, True, False]])
    assert Scope.over(valid, valid=valid).positions.tolist() == [[-1, -1, 0, 1, 2], [0, 1, 2, 3, -1]]
    documents = torch.tensor([[0, 0, 0, 1, 1], [5, 5, 2, 5, 5]])
    assert Scope.over(valid, documents=documents).positions.tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 0, 1]]
    both = Scope.over(valid, valid=valid, documents=documents)
    assert both.positions.tolist() == [[-1, -1, 0, 0, 1], [0, 1, 0, 0, -1]]
    assert Scope.over(valid).positions.tolist() == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_a_padded_row_equals_the_row_alone(left: bool, causal: bool) -> None:
    torch.manual_seed(0)
    lengths, n = (6, 3, 1), 6
    q, k, v = (torch.randn(3, n, heads, 8) for heads in (4, 2, 2))
    filled = torch.arange(n) < torch.tensor(lengths)[:, None]
    valid = filled.flip(1) if left else filled
    out = attend(q, k, v, Scope.over(valid, causal=causal, valid=valid))
    for row in range(3):
        own = [x[row : row + 1, valid[row]] for x in (q, k, v)]
        alone = attend(*own, Scope.over(own[0][..., 0, 0], causal=causal))
        torch.testing.assert_close(out[row : row + 1, valid[row]], alone, rtol=1e-5, atol=1e-6)


def test_a_packed_row_equals_its_documents_alone() -> None:
    torch.manual_seed(0)
    documents = torch.tensor([[3, 3, 3, 1, 1, 3]])
    q, k, v = (torch.randn(1, 6, heads, 8) for heads in (4, 2, 2))
    rotary = Turn(Turn.Config(dim=2))
    scope = Scope.over(documents, documents=documents)
    q_turned, k_turned = scope.rotate(rotary, q, k)
    out = attend(q_turned, k_turned, v, scope)
    for part in (slice(0, 3), slice(3, 5), slice(5, 6)):
        own = Scope.over(documents[:, part])
        q_own, k_own = own.rotate(rotary, q[:, part], k[:, part])
        torch.testing.assert_close(out[:, part], attend(q_own, k_own, v[:, part], own), rtol=1e-5, atol=1e-6)


def test_a_function_made_in_each_call_is_evaluated_anew_and_an_equal_one_is_not() -> None:
    """The documented way to a bias that depends on data: two layers, or one twice, with other data each."""
    x = torch.zeros(1, 3, 1, 2)
    v = torch.eye(3)[None, :, None]
    scope = Scope.over(x[:, :, 0], causal=False)

    def layer(data: Tensor) -> Tensor:
        return attend(x, x, v, scope, bias=lambda query, key: data)

    one, two = torch.tensor([9.0, 0, 0]).expand(1, 1, 3, 3), torch.tensor([0, 0, 9.0]).expand(1, 1, 3, 3)
    torch.testing.assert_close(layer(one)[0, 0, 0], one[0, 0, 0].softmax(-1))
    torch.testing.assert_close(layer(two)[0, 0, 0], two[0, 0, 0].softmax(-1))
    calls: list[str] = []
    assert [scope.once(("key", 1), lambda: calls.append("made") or len(calls)) for _ in range(2)] == [1, 1]


class Longest(Turn):
    """Turns by the position, the more slowly the longer the row is past 2 tokens."""

    constant_until = 2

    def forward(self, positions: Tensor) -> Rotation:
        return Rotation.of(positions.unsqueeze(-1) * 2 / (positions.amax(1) + 1).clamp(min=2)[:, None, None], "half")


def test_each_document_of_a_packed_row_has_the_rotation_of_its_own_length() -> None:
    documents = torch.tensor([[7, 7, 7, 1, 1, 7], [2, 2, 2, 2, 2, 2]])
    valid = torch.tensor([[True] * 6, [False, False] + [True] * 4])
    table = Scope.over(documents, documents=documents, valid=valid).rotation(Longest(Turn.Config(dim=2)), torch.float32)
    angles = torch.atan2(table.sin[..., 1], table.cos[..., 1])
    assert angles[0].tolist() == pytest.approx([0, 2 / 3, 4 / 3, 0, 1, 0])
    assert angles[1, 2:].tolist() == pytest.approx([0, 0.5, 1, 1.5])


def test_no_token_sees_what_comes_later_or_is_padding() -> None:
    torch.manual_seed(0)
    valid = torch.tensor([[False, True, True, True, False]])
    q, k, v = (torch.randn(1, 5, 2, 8) for _ in range(3))
    v.requires_grad_()
    out = attend(q, k, v, Scope.over(valid, valid=valid))
    for i in range(1, 4):
        (reads,) = torch.autograd.grad(out[0, i].sum(), v, retain_graph=True)
        assert (reads[0].abs().amax((1, 2)) > 0).tolist() == [valid[0, j].item() and j <= i for j in range(5)]


def test_cross_attention_sees_the_whole_memory_but_no_padding() -> None:
    torch.manual_seed(0)
    valid = torch.tensor([[True, True, True, False], [False, True, False, False], [False] * 4])
    q, k, v = torch.randn(3, 2, 4, 8), torch.randn(3, 4, 2, 8), torch.randn(3, 4, 2, 8)
    scope = Scope.across(q[..., 0], valid)
    assert scope.mask(4).expand(3, 1, 2, 4)[:2, 0].tolist() == [[row.tolist()] * 2 for row in valid[:2]]
    out = attend(q, k, v, scope)
    torch.testing.assert_close(out[1], v[1, 1].repeat_interleave(2, 0).expand(2, 4, 8))  # one key: its value
    poked = attend(q, k.masked_fill(~valid[..., None, None], 7.0), v.masked_fill(~valid[..., None, None], 7.0), scope)
    assert torch.equal(poked[:2], out[:2])
    # The third row is all padding: seen nevertheless, as some kernels give NaN for a softmax over nothing.
    assert scope.mask(4)[2].all()
    assert out.isfinite().all()


def test_cross_attention_to_one_key_gives_its_value_to_the_first_query_as_to_the_last() -> None:
    # a memory shorter or longer than the queries: positions of the two have nothing to do with one another
    q, k, v = torch.randn(1, 5, 2, 8), torch.randn(1, 1, 2, 8), torch.randn(1, 1, 2, 8)
    out = attend(q, k, v, Scope.across(q[..., 0], torch.ones(1, 1, dtype=torch.bool)))
    torch.testing.assert_close(out, v.expand(1, 5, 2, 8))


def test_all_layers_share_what_is_computed_once() -> None:
    rotary = Turn(Turn.Config(dim=2))
    x = torch.randn(2, 4, 3, 2)
    scope = Scope.over(x[..., 0, 0])
    assert scope.mask(4, Window(2)) is scope.mask(4, Window(2))
    assert scope.mask(4, Window(2)) is not scope.mask(4, Window(3))
    assert scope.bias(4, Window(2), torch.float32) is scope.bias(4, Window(2), torch.float32)
    first, second = scope.rotate(rotary, x, x)
    scope.rotate(rotary, x)
    assert rotary.calls == 1
    assert torch.equal(first, second)
    assert scope.rotate(None, x)[0] is x


def test_rotation_follows_positions_that_padding_does_not_move() -> None:
    rotary = Turn(Turn.Config(dim=2))
    valid = torch.tensor([[False, True, True], [True, True, False]])
    x = torch.ones(2, 3, 1, 2)
    (turned,) = Scope.over(valid, valid=valid).rotate(rotary, x)
    torch.testing.assert_close(turned[0, 1:], turned[1, :2])
    angle = torch.tensor(1.0)
    expected = torch.stack((angle.cos() - angle.sin(), angle.cos() + angle.sin()))
    torch.testing.assert_close(turned[0, 2, 0], expected)


def test_which_tokens_are_valid_is_none_where_all_are() -> None:
    valid = torch.tensor([[False, True]])
    assert Scope.over(valid).valid is None
    assert torch.equal(Scope.over(valid, valid=valid).valid, valid)
