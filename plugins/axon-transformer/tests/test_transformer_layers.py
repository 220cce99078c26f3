"""The parts of a layer: the residual connections, and the memory that rows share."""

from __future__ import annotations

import pytest
import torch

from axon_core import NORMS
from axon_transformer.layers import Memory, PostNorm, PreNorm


def test_residual_connections_are_their_formulas() -> None:
    """F turns its input around, so that normalising before and after it are not the same."""
    torch.manual_seed(0)
    norm = NORMS.build("layernorm", dim=6)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 3, 6)
    torch.testing.assert_close(PostNorm(norm, 0.0)(x, lambda x: 2 * x.flip(-1)), norm(x + 2 * x.flip(-1)))
    torch.testing.assert_close(PreNorm(norm, 0.0)(x, lambda x: 2 * x.flip(-1)), x + 2 * norm(x).flip(-1))


def test_dropout_is_of_the_sublayers_result_before_it_is_added() -> None:
    norm = NORMS.build("layernorm", dim=200)
    x = torch.full((1, 1, 200), 7.0)
    y = PreNorm(norm, 0.5)(x, torch.ones_like)
    assert y.unique().tolist() == [7.0, 9.0]  # dropped, or twice as large


def test_a_memory_keeps_only_the_sentences_that_go_on() -> None:
    features, valid = torch.randn(3, 4, 2), torch.rand(3, 4) < 0.5
    memory = Memory(features, valid, 1)
    (made,) = memory.caches[0].once(lambda: (2 * features,))
    first = memory.scope(torch.zeros(3, 5, 2))
    assert memory.scope(torch.zeros(3, 5, 2)) is first is not memory.scope(torch.zeros(3, 1, 2))
    rows = torch.tensor([2, 0])
    memory.keep(rows)
    assert torch.equal(memory.features, features[rows]) and torch.equal(memory.valid, valid[rows])
    assert torch.equal(memory.caches[0].once(lambda: pytest.fail("it is kept"))[0], made[rows])
    assert memory.scope(torch.zeros(2, 5, 2)) is not first
