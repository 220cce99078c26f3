"""Evaluations of trainers that go over held-out data tell how far they have come, to the end."""

from __future__ import annotations

import pytest

from axon_core import TRAINERS
from axon_core.evaluating import listening
from axon_core.loop import evaluate
from axon_core.recipe import Recipe


@pytest.mark.parametrize("key", ["causal_lm", "dpo", "reward", "sft"])
def test_an_evaluation_tells_how_far_it_is(key: str) -> None:
    trainer = Recipe.of(TRAINERS[key].examples[0], "small", "small.toml").build()
    told: list[tuple[int, int]] = []
    with listening(lambda done, total: told.append((done, total))):
        evaluate(trainer)
    assert told and told == sorted(told)
    assert told[-1][0] == told[-1][1]
