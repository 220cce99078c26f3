"""Half and interleaved layouts compute the same scores once the projections are permuted."""

import pytest
import torch

from axon_core import ROTARY_EMBEDDINGS
from axon_roformer import half_to_interleaved, interleaved_to_half


def randn(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scores(x, wq, wk, n_heads, n_kv_heads, layout):
    """Scores of grouped-query attention with rotated queries and keys."""
    n, d = x.shape[1], wq.shape[0] // n_heads
    rotation = ROTARY_EMBEDDINGS.build("rotary", dim=d, layout=layout)(torch.arange(n)[None])
    q = rotation((x @ wq.T).unflatten(-1, (n_heads, d)))
    k = rotation((x @ wk.T).unflatten(-1, (n_kv_heads, d))).repeat_interleave(n_heads // n_kv_heads, 2)
    return torch.einsum("bnhd,bmhd->bhnm", q, k)


@pytest.mark.parametrize(("n_heads", "n_kv_heads", "d"), [(4, 4, 8), (6, 2, 16), (4, 1, 2)])
def test_a_permuted_projection_gives_the_same_scores(n_heads, n_kv_heads, d):
    x, wq, wk = randn(2, 9, 24, seed=0), randn(n_heads * d, 24, seed=1), randn(n_kv_heads * d, 24, seed=2)
    interleaved = scores(x, wq, wk, n_heads, n_kv_heads, "interleaved")
    permuted = interleaved_to_half(wq, n_heads), interleaved_to_half(wk, n_kv_heads)
    half = scores(x, *permuted, n_heads, n_kv_heads, "half")
    torch.testing.assert_close(half, interleaved, rtol=1e-6, atol=1e-5)
    if d > 2:
        assert not torch.allclose(scores(x, wq, wk, n_heads, n_kv_heads, "half"), interleaved, atol=0.1)


def test_keys_need_the_number_of_key_heads():
    # llama2.c's loader takes n_heads for the keys too, and so breaks grouped-query attention silently.
    x, wq, wk = randn(1, 5, 24, seed=0), randn(32, 24, seed=1), randn(16, 24, seed=2)
    interleaved = scores(x, wq, wk, 4, 2, "interleaved")
    wrong = scores(x, interleaved_to_half(wq, 4), interleaved_to_half(wk, 4), 4, 2, "half")
    assert not torch.allclose(wrong, interleaved, atol=0.1)


def test_where_each_row_goes():
    rows = torch.arange(12)  # two heads of r = 6
    assert interleaved_to_half(rows, 2).tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    assert half_to_interleaved(rows, 2).tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


@pytest.mark.parametrize("shape", [(24, 10), (24,)], ids=["matrix", "bias"])
@pytest.mark.parametrize("n_heads", [1, 2, 3, 6, 12])
def test_the_two_directions_undo_each_other(shape, n_heads):
    weight = randn(*shape, seed=3)
    assert torch.equal(half_to_interleaved(interleaved_to_half(weight, n_heads), n_heads), weight)
    assert torch.equal(interleaved_to_half(half_to_interleaved(weight, n_heads), n_heads), weight)


@pytest.mark.parametrize("convert", [interleaved_to_half, half_to_interleaved])
@pytest.mark.parametrize("n_heads", [5, 8, 0])
def test_rows_that_form_no_heads_are_refused(convert, n_heads):
    with pytest.raises(ValueError, match=f"24 rows do not form {n_heads}"):
        convert(torch.zeros(24, 4), n_heads)
