"""The card's claims hold, and the 125 sequences notice a mistake."""

from __future__ import annotations

from dataclasses import replace

import pytest

from axon_core.alignment import completion_logprobs
from axon_dpo import claims


@pytest.mark.parametrize("name", ["optimum", "update", "flipped_labels", "identity_mapping", "smoothed_labels"])
def test_claim(name):
    outcome = getattr(claims, name)()
    assert outcome.passed is True, outcome.measured


@pytest.mark.parametrize("attention", [{"type": "MHA"}, {"type": "GQA", "n_kv_heads": 2}], ids=["MHA", "GQA"])
def test_a_language_model_reaches_the_optimum_over_all_125_sequences(attention):
    policy, best = claims.train_on_all_sequences(3, attention=attention)
    assert len(policy) == 125
    assert policy.sum().item() == pytest.approx(1) and best.sum().item() == pytest.approx(1)
    assert claims.total_variation(policy, best) < 0.01


def test_a_last_token_that_is_not_scored_shows(monkeypatch):
    def short(model, rows):
        scored = rows.scored.clone()
        scored[:, -1] = False
        return completion_logprobs(model, replace(rows, scored=scored))

    right = claims.train_on_all_sequences(3, length=2)
    monkeypatch.setattr(claims, "completion_logprobs", short)
    policy, _ = claims.train_on_all_sequences(3, length=2)
    assert claims.total_variation(*right) < 0.01 < 0.1 < claims.total_variation(policy / policy.sum(), right[1])
