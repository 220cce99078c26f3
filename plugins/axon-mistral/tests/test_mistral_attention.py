"""Sliding-window attention against a naive one in float64, in one pass, in blocks, and from its rolling cache."""

import pytest
import torch

from axon_core import ATTENTIONS
from axon_core.generation import Sampling, decode
from axon_core.interfaces import Cache, Scope
from axon_mistral import SlidingWindowAttention, attend_near
from axon_xllama import XLlama


def naive(q, k, v, window, valid=None):
    """Softmax over the keys j with i − window < j ≤ i, one query after the other; of a padded row, its tokens alone."""
    b, n, h, d = q.shape
    m, groups = k.shape[1], k.shape[2]
    out = torch.zeros_like(q)
    for row in range(b):
        kept = range(m) if valid is None else valid[row].nonzero().flatten().tolist()
        for i in (i for i in kept if i >= m - n):
            seen = [j for j in kept if i - window < j <= i]
            for head in range(h):
                group = head // (h // groups)
                weights = (k[row, seen, group] @ q[row, i - (m - n), head] / d**0.5).softmax(0)
                out[row, i - (m - n), head] = weights @ v[row, seen, group]
    return out


def heads(n, m, *, b=1, h=2, groups=1, d=4, seed=0):
    torch.manual_seed(seed)
    return tuple(torch.randn(b, length, g, d, dtype=torch.float64) for length, g in ((n, h), (m, groups), (m, groups)))


@pytest.mark.parametrize("window", [1, 3, 8, 20])
def test_a_key_is_seen_by_the_queries_up_to_a_window_after_it(window):
    q, k, v = heads(8, 8, b=2)
    found = attend_near(q, k, v, Scope.over(q.flatten(2)), window)
    torch.testing.assert_close(found, naive(q, k, v, window), atol=1e-14, rtol=0)


@pytest.mark.parametrize(("n", "side"), [(300, None), (140, None), (300, "left"), (300, "right")])
def test_long_texts_are_read_in_blocks(n, side, monkeypatch):
    m = 300
    monkeypatch.setattr("axon_mistral.attention._BLOCK", 16)
    q, k, v = heads(n, m, b=1 if side is None else 2)
    valid = None
    if side:
        valid = torch.ones(2, n, dtype=torch.bool)
        valid[1, :70] = False
        valid = valid if side == "left" else valid.flip(1)
    after = Scope(torch.arange(m - n, m)[None], torch.arange(m)[None], causal=True)
    scope = Scope.over(q.flatten(2), valid=valid) if n == m else after
    found, expected = attend_near(q, k, v, scope, 25), naive(q, k, v, 25, valid)
    if valid is not None:
        found = found.masked_fill(~valid[:, :, None, None], 0)
    torch.testing.assert_close(found, expected, atol=1e-13, rtol=0)


def test_documents_of_a_packed_row_do_not_see_each_other():
    q, k, v = heads(30, 30)
    documents = torch.tensor([[0] * 12 + [1] * 18])
    found = attend_near(q, k, v, Scope.over(q.flatten(2), documents=documents), 5)
    expected = torch.cat([naive(*(part[:, piece] for part in (q, k, v)), 5) for piece in (slice(12), slice(12, 30))], 1)
    torch.testing.assert_close(found, expected, atol=1e-14, rtol=0)


@pytest.mark.parametrize("sizes", [[1] * 20, [7, 1, 1, 9, 1, 1], [20], [3, 17]], ids=str)
@torch.no_grad()
def test_the_cache_rolls_over_exactly_the_window(sizes):
    torch.manual_seed(0)
    attention = SlidingWindowAttention(
        SlidingWindowAttention.Config(dim=16, n_heads=4, n_kv_heads=2, window=5)
    ).double()
    x = torch.randn(2, 20, 16, dtype=torch.float64)
    cache = Cache([attention.state()], 2, 20, dtype=torch.float64, device="cpu")
    assert {buffer.shape[1] for buffer in cache.layers[0].buffers.values()} == {5}
    pieces, start = [], 0
    for n in sizes:
        step = cache.extend(torch.zeros(2, n, dtype=torch.long))
        pieces.append(attention(x[:, start : start + n], step.scope, cache=step.layers[0]))
        start += n
    torch.testing.assert_close(torch.cat(pieces, 1), attention(x, Scope.over(x)), atol=1e-13, rtol=0)


@torch.no_grad()
def test_token_t_lies_in_slot_t_modulo_the_window():
    """ArXiv 2310.06825, Section 2, rolling buffer cache."""
    attention = SlidingWindowAttention(SlidingWindowAttention.Config(dim=8, n_heads=2, window=4))
    x = torch.randn(1, 11, 8)
    _, keys, _ = attention.qkv(x)
    cache = Cache([attention.state()], 1, 11, dtype=torch.float32, device="cpu")
    for piece in x.split([6, 1, 1, 1, 2], 1):
        step = cache.extend(torch.zeros(piece.shape[:2], dtype=torch.long))
        attention(piece, step.scope, cache=step.layers[0])
    slots = cache.layers[0].buffers["k"][0]
    for token in range(7, 11):
        torch.testing.assert_close(slots[token % 4], keys[0, token])


@torch.no_grad()
def test_generated_text_does_not_depend_on_cache_batch_or_padding():
    torch.manual_seed(0)
    spec = {"type": "SWA", "window": 6}
    model = XLlama.build(vocab_size=61, context=64, dim=32, n_layers=3, n_heads=4, attention=spec).eval()
    for parameter in model.parameters():
        parameter.mul_(2)
    prompts = [[5, 6, 7], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [8]]
    expected = []
    for prompt in prompts:
        row = list(prompt)
        for _ in range(30):
            row.append(model(torch.tensor([row]))[0, -1].argmax().item())
        expected.append(row[len(prompt) :])
    greedy = Sampling(temperature=0)
    together = zip(*decode(model, prompts, range(3), max_new_tokens=30, sampling=greedy), strict=True)
    assert [list(row) for row in together] == expected
    for prompt, row in zip(prompts, expected, strict=True):
        assert [token for (token,) in decode(model, [prompt], [0], max_new_tokens=30, sampling=greedy)] == row


def test_a_window_beyond_the_text_is_grouped_query_attention():
    config = {"dim": 16, "n_heads": 4, "n_kv_heads": 2}
    windowed, whole = ATTENTIONS.build({"type": "SWA", "window": 50}, **config), ATTENTIONS.build("GQA", **config)
    whole.load_state_dict(windowed.state_dict())
    x = torch.randn(2, 50, 16)
    assert torch.equal(windowed(x, Scope.over(x)), whole(x, Scope.over(x)))
