"""Decoding with a cache equals one pass over everything, however the tokens arrive; and what the cache costs."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from axon_core.errors import ContextError, UsageError
from axon_core.interfaces.cache import Cache, CacheStep, LayerCache, StateSpec
from axon_core.interfaces.rotary_embedding import RotaryEmbedding, Rotation
from axon_core.interfaces.scope import Scope
from axon_core.nn.attention import attend

VOCABULARY, HEADS, GROUPS, SIZE = 11, 4, 2, 4


@dataclass(frozen=True)
class Near:
    window: int

    def __call__(self, query: Tensor, key: Tensor) -> Tensor:
        return query - key < self.window


class Turn(RotaryEmbedding):
    """Turns by the position in radians; all angles of a row shrink once it is longer than `horizon`."""

    horizon: int | None = None

    def forward(self, positions: Tensor) -> Rotation:
        longest = positions.amax(1, keepdim=True) + 1
        factor = 1.0 if self.horizon is None else (self.horizon / longest).clamp(max=1)
        return Rotation.of((factor * positions).unsqueeze(-1), "half")


class Toy:
    """Two layers of attention over a table of random vectors, in float64; enough of a model to fill a cache."""

    def __init__(self, window: int | None = None, horizon: int | None = None) -> None:
        table = torch.Generator().manual_seed(0)
        sizes = HEADS * SIZE, 2 * GROUPS * SIZE
        self.embedding = torch.randn(VOCABULARY, sizes[0], generator=table, dtype=torch.float64)
        self.kv = torch.randn(2, sizes[0], sizes[1], generator=table, dtype=torch.float64) / 4
        self.window = window
        self.rotary = Turn(Turn.Config(dim=2))
        self.rotary.horizon = horizon

    def cache(self, batch: int, capacity: int = 16) -> Cache:
        states = {name: StateSpec((GROUPS, SIZE), window=self.window) for name in ("k", "v")}
        horizon = self.rotary.horizon
        return Cache([states, states], batch, capacity, dtype=torch.float64, device="cpu", horizon=horizon)

    def __call__(self, tokens: Tensor, cache: Cache | None = None, valid: Tensor | None = None) -> Tensor:
        if cache is None:
            step = CacheStep(tokens, Scope.over(tokens, valid=valid), [None, None])
        else:
            step = cache.extend(tokens, valid)
        x = self.embedding[step.tokens]
        for kv, layer in zip(self.kv, step.layers, strict=True):
            k, v = (x @ kv).unflatten(-1, (2, GROUPS, SIZE)).unbind(2)
            q, k = step.scope.rotate(self.rotary, x.unflatten(-1, (HEADS, SIZE)), k)
            k, v = (k, v) if layer is None else layer.append(k=k, v=v)
            narrow = None if self.window is None else Near(self.window)
            x = x + attend(q, k, v, step.scope, narrow=narrow).flatten(2)
        return x[:, -tokens.shape[1] :]


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def in_chunks(toy: Toy, cache: Cache, text: Tensor, chunks: list[int]) -> Tensor:
    return torch.cat([toy(chunk, cache) for chunk in text.split(chunks, 1)], 1)


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("horizon", [None, 6])
@settings(deadline=None, max_examples=40)
@given(chunks=st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_any_chunks_equal_one_pass(window: int | None, horizon: int | None, chunks: list[int]) -> None:
    toy, n = Toy(window, horizon), sum(chunks)
    text, cache = tokens(2, n), toy.cache(2, n)
    done = 0
    for chunk in chunks:  # each chunk's result is that of one pass over the text so far
        done += chunk
        out = toy(text[:, done - chunk : done], cache)
        torch.testing.assert_close(out, toy(text[:, :done])[:, -chunk:], rtol=1e-10, atol=1e-10)


def test_chunks_of_5_3_and_1_equal_one_pass() -> None:
    toy, text = Toy(), tokens(2, 9)
    torch.testing.assert_close(in_chunks(toy, toy.cache(2), text, [5, 3, 1]), toy(text))


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("horizon", [None, 5])
def test_a_left_padded_batch_equals_each_row_alone(window: int | None, horizon: int | None) -> None:
    toy, lengths, prompt, steps = Toy(window, horizon), (5, 3, 1), 5, 3
    text = tokens(3, prompt + steps)
    valid = torch.arange(prompt) >= prompt - torch.tensor(lengths)[:, None]
    cache = toy.cache(3)
    outs = [toy(text[:, :prompt], cache, valid)]
    outs += [toy(text[:, i : i + 1], cache) for i in range(prompt, prompt + steps)]
    for row, length in enumerate(lengths):
        own = text[row : row + 1, prompt - length :]
        first = outs[0][row : row + 1, prompt - length :]
        torch.testing.assert_close(first, toy(own[:, :length]))
        for i, out in enumerate(outs[1:], length + 1):
            torch.testing.assert_close(out[row : row + 1], toy(own[:, :i])[:, -1:])


@pytest.mark.parametrize(
    ("chunks", "at"),
    [
        ([[[1, 1, 0]]], "token 2 of row 0"),
        ([[[1, 1], [0, 1]], [[1, 1], [1, 0]]], "token 1 of row 1"),
        ([[[0, 1, 1], [1, 1, 1]], [[1, 1, 1], [0, 0, 1]]], "token 0 of row 1"),
        ([[[0, 1, 0, 1]]], "token 2 of row 0"),
    ],
)
def test_padding_after_a_rows_first_token_is_refused_and_changes_nothing(chunks: list[list], at: str) -> None:
    """What a window holds and what a recurrent state forgets count slots: they would be wrong by the padding."""
    *before, wrong = (torch.tensor(chunk).bool() for chunk in chunks)
    toy, fresh = Toy(window=2), Toy(window=2)
    cache, other = toy.cache(len(wrong)), fresh.cache(len(wrong))
    for valid in before:
        text = tokens(*valid.shape)
        toy(text, cache, valid), fresh(text, other, valid)
    with pytest.raises(UsageError, match=rf"{at} is padding after it; pad the rows on the left"):
        toy(tokens(*wrong.shape), cache, wrong)
    more = tokens(len(wrong), 3, seed=1)
    torch.testing.assert_close(toy(more, cache), fresh(more, other), rtol=0, atol=0)


def test_a_row_may_begin_in_a_later_chunk() -> None:
    toy, text = Toy(window=3), tokens(2, 6)
    cache = toy.cache(2)
    toy(text[:, :2], cache, torch.tensor([[0, 0], [1, 1]]).bool())
    out = toy(text[:, 2:], cache, torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]).bool())
    torch.testing.assert_close(out[:1, 1:], toy(text[:1, 3:]))
    torch.testing.assert_close(out[1:], toy(text[1:])[:, 2:])


def test_past_the_horizon_all_tokens_are_run_again() -> None:
    toy, text = Toy(horizon=4), tokens(1, 6)
    cache = toy.cache(1)
    cached = cache.extend(text[:, :4])
    assert all(layer is not None for layer in cached.layers)
    again = cache.extend(text[:, 4:])
    assert torch.equal(again.tokens, text)
    assert list(again.layers) == [None, None]
    assert cache.nbytes == 2 * 2 * 4 * GROUPS * SIZE * 8  # two layers of keys and values, up to the horizon alone


def test_reordering_rows_continues_the_other_rows() -> None:
    for horizon in (None, 5):
        toy, text = Toy(horizon=horizon), tokens(3, 7)
        cache, rows = toy.cache(3), torch.tensor([2, 0, 0])
        valid = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1]]).bool()
        toy(text[:, :4], cache, valid)
        cache.reorder(rows)
        fresh = toy.cache(3)
        toy(text[rows, :4], fresh, valid[rows])
        for step in (4, 5, 6):
            more = text[:, step : step + 1]
            torch.testing.assert_close(toy(more, cache), toy(more, fresh), rtol=0, atol=0)


@pytest.mark.parametrize(("window", "horizon"), [(None, None), (1, None), (3, None), (None, 5), (None, 3)])
@settings(deadline=None, max_examples=40)
@given(lengths=st.permutations([1, 3, 4, 6]), chunk=st.integers(1, 6), kept=st.integers(1, 3))
def test_rows_that_are_kept_go_on_and_the_others_memory_is_freed(
    window: int | None, horizon: int | None, lengths: list[int], chunk: int, kept: int
) -> None:
    toy, text = Toy(window, horizon), tokens(4, 10)
    cache, rows = toy.cache(4), torch.tensor([3, 1, 0][:kept])
    valid = torch.arange(6) >= 6 - torch.tensor(lengths)[:, None]
    for piece, real in zip(text[:, :6].split(chunk, 1), valid.split(chunk, 1), strict=True):
        toy(piece, cache, real)
    before = cache.nbytes
    cache.keep(rows)
    assert cache.nbytes * 4 == before * kept
    if horizon is None:
        assert cache.length == max(lengths[row] for row in rows)  # what was padding for all of them is gone
    for step in range(6, 10):
        more = text[rows, step : step + 1]
        out = toy(more, cache)
        for i, row in enumerate(rows.tolist()):
            alone = toy(text[row : row + 1, 6 - lengths[row] : step + 1])
            torch.testing.assert_close(out[i : i + 1], alone[:, -1:], rtol=1e-10, atol=1e-10)


def test_the_last_row_is_one_without_padding() -> None:
    toy, text = Toy(), tokens(2, 5)
    cache = toy.cache(2)
    toy(text[:, :3], cache, torch.tensor([[0, 0, 1], [1, 1, 1]]).bool())
    toy(text[:, 3:4], cache, torch.ones(2, 1).bool())
    cache.keep(torch.tensor([0]))
    scope = cache.extend(text[:1, 4:]).scope
    assert not scope.padded
    assert scope.keys.tolist() == [[0, 1, 2]]


def test_a_reset_cache_is_a_new_one() -> None:
    toy, text = Toy(window=3), tokens(2, 8)
    cache = toy.cache(2, 8)
    toy(text, cache, torch.tensor([[False] * 2 + [True] * 6, [True] * 8]))
    cache.reset()
    torch.testing.assert_close(in_chunks(toy, cache, text, [4, 4]), toy(text))


def test_more_tokens_than_the_cache_has_room_for_are_an_error_that_changes_nothing() -> None:
    toy, text = Toy(), tokens(1, 4)
    cache = toy.cache(1, 4)
    toy(text[:, :3], cache)
    with pytest.raises(ContextError, match=r"has room for 4 tokens, got 3 \+ 2"):
        toy(text[:, :2], cache)
    torch.testing.assert_close(toy(text[:, 3:], cache), toy(text)[:, 3:])


def test_bytes() -> None:
    states = {
        "k": StateSpec((2, 8)),
        "near": StateSpec((8,), window=5),
        "sum": StateSpec((3, 3), per_token=False, dtype=torch.float32),
    }
    cache = Cache([states], 4, 100, dtype=torch.bfloat16, device="cpu")
    # bfloat16 for every token; for the 5 tokens of the window; one float32 matrix a row
    assert cache.nbytes == 4 * (100 * 2 * 8 * 2 + 5 * 8 * 2 + 3 * 3 * 4)
    short = Cache([states], 4, 3, dtype=torch.bfloat16, device="cpu")
    assert short.nbytes == 4 * (3 * 2 * 8 * 2 + 3 * 8 * 2 + 3 * 3 * 4)


def test_decoding_allocates_no_buffers() -> None:
    toy, text = Toy(window=3), tokens(2, 8)
    cache = toy.cache(2)

    def addresses() -> list[int]:
        return [buffer.data_ptr() for layer in cache.layers for buffer in layer.buffers.values()]

    before = addresses()
    in_chunks(toy, cache, text, [4, 1, 1, 2])
    assert addresses() == before


def test_a_window_hands_over_only_what_a_query_may_reach() -> None:
    layer = LayerCache({"k": StateSpec((1,), window=3)}, 1, 10, torch.float32, "cpu")
    seen = []
    for start, n in ((0, 4), (4, 1), (5, 2)):
        layer.start = start
        (keys,) = layer.append(k=torch.arange(start, start + n).float().view(1, n, 1))
        seen.append(keys.flatten().tolist())
    assert seen == [[0, 1, 2, 3], [2, 3, 4], [3, 4, 5, 6]]


def test_a_whole_state_is_read_and_replaced() -> None:
    cache = Cache([{"sum": StateSpec((2,), per_token=False)}], 3, 4, dtype=torch.float32, device="cpu")
    (layer,) = cache.layers
    for _ in range(2):
        layer["sum"] = layer["sum"] + torch.arange(3.0).unsqueeze(1)
    cache.reorder(torch.tensor([1, 2, 0]))
    assert layer["sum"].tolist() == [[2, 2], [4, 4], [0, 0]]


def test_what_is_kept_of_a_memory_is_made_once_and_follows_its_rows():
    cache = LayerCache({}, 3, 0, torch.float32, "cpu")
    made = []

    def make() -> tuple[torch.Tensor, ...]:
        made.append(True)
        return torch.arange(3.0), torch.arange(6.0).view(3, 2)

    first, second = cache.once(make)
    assert cache.once(make)[0] is first and len(made) == 1
    cache.keep(torch.tensor([2, 0]))
    assert [part.tolist() for part in cache.once(make)] == [[2.0, 0.0], [[4.0, 5.0], [0.0, 1.0]]]
    assert second.shape == (3, 2) and len(made) == 1
