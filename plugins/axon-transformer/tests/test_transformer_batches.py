"""Token-count batches: each pair once an epoch, even sizes, little padding, and no state."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from axon_core import ConfigError, Key
from axon_transformer.batches import TokenBatches, pad

PAIRS = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=80)


def batches(pairs: list[tuple[int, int]], size: int, seed: int = 0) -> TokenBatches:
    sources, targets = zip(*pairs, strict=True)
    return TokenBatches(sources, targets, size, Key((seed,)))


@given(PAIRS, st.integers(30, 200))
def test_every_pair_comes_once_an_epoch_in_batches_of_at_least_so_many_tokens(
    pairs: list[tuple[int, int]], size: int
) -> None:
    made = batches(pairs, size)
    longest = max(target for _, target in pairs)
    total = sum(target for _, target in pairs)
    for epoch in range(2):
        steps = range(epoch * made.per_epoch, (epoch + 1) * made.per_epoch)
        assert sorted(i for step in steps for i in made[step].tolist()) == list(range(len(pairs)))
        for step in steps:
            tokens = sum(pairs[i][1] for i in made[step].tolist())
            assert abs(tokens - total / made.per_epoch) < longest
    assert total / made.per_epoch >= min(size, total)


def corpus(count: int = 3000) -> list[tuple[int, int]]:
    generator = torch.Generator().manual_seed(0)
    targets = 3 + (10 * torch.rand(count, generator=generator) + 10 * torch.rand(count, generator=generator)).long()
    sources = (targets + torch.randn(count, generator=generator) * 2).long().clamp(min=1)
    return list(zip(sources.tolist(), targets.tolist(), strict=True))


def test_little_of_a_batch_is_padding() -> None:
    pairs = corpus()
    made = batches(pairs, 500)
    real = sum(source + target for source, target in pairs)
    padded = 0
    for step in range(made.per_epoch):
        rows = [pairs[i] for i in made[step].tolist()]
        padded += len(rows) * (max(source for source, _ in rows) + max(target for _, target in rows))
    shuffled = len(pairs) * (max(s for s, _ in pairs) + max(t for _, t in pairs))
    assert padded < 1.15 * real < 0.65 * shuffled


def test_a_batch_is_a_function_of_seed_and_step_and_epochs_differ() -> None:
    pairs = corpus()
    made, again = batches(pairs, 500), batches(pairs, 500)
    late = [made[step].tolist() for step in (500, 3, 200)]
    assert [again[step].tolist() for step in (500, 3, 200)] == late  # asked for in another state of the cache
    other = batches(pairs, 500, seed=1)
    first, second = ([made[e * made.per_epoch + i].tolist() for i in range(made.per_epoch)] for e in (0, 1))
    assert first != second and {tuple(b) for b in first} != {tuple(b) for b in second}
    assert [other[i].tolist() for i in range(made.per_epoch)] != first
    lengths = [len(batch) for batch in first]
    assert lengths != sorted(lengths) and lengths != sorted(lengths, reverse=True)


def test_a_batch_must_hold_the_longest_target() -> None:
    with pytest.raises(ConfigError, match="batch_size: must be at least the 30 tokens of the longest target, got 29"):
        batches([(1, 30), (2, 5)], 29)


def test_rows_are_padded_at_their_ends() -> None:
    assert pad([[5, 6], [7], [8, 9, 10]]).tolist() == [[5, 6, -1], [7, -1, -1], [8, 9, 10]]
