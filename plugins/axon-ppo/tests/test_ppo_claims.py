"""The exact claims hold, and their checks can fail."""

import pytest
import torch

from axon_core.training import build_trainer
from axon_ppo import claims


def test_exact_claims():
    assert claims.pessimistic_bound().passed is True
    assert claims.lambda_one().passed is True


def test_a_surrogate_that_is_no_bound_is_found(monkeypatch):
    def wrong(new, old, advantages, clip):
        ratio = (new - old).exp()
        return -ratio.clamp(1 - clip, 1 + clip) * advantages, torch.zeros_like(ratio)

    monkeypatch.setattr(claims, "clipped_surrogate", wrong)
    assert claims.pessimistic_bound().passed is False


def test_an_advantage_that_is_shifted_is_found(monkeypatch):
    def shifted(rewards, values, following, ended, **options):
        return tuple(x.roll(1, 1) for x in real(rewards, values, following, ended, **options))

    real = claims.gae
    monkeypatch.setattr(claims, "gae", shifted)
    assert claims.lambda_one().passed is False


@pytest.mark.parametrize(
    ("free", "verdict"),
    [
        ((30.0, 45.0, 40.0), "direction"),
        ((48.9, 48.8, 48.9), False),  # better with every seed, but not by a twentieth
        ((20.0, 20.0, 49.5), False),  # far better, but not with every seed
    ],
)
def test_clipping_is_judged_by_every_seed_and_by_how_much(monkeypatch, free, verdict):
    returns = {claims._CLIPPED: (49.0, 49.2, 49.1), claims._FREE: free}
    monkeypatch.setattr(claims, "_returns", lambda seed, clip: (10.0, returns[clip][seed]))
    outcome = claims.clipping()
    assert outcome.passed == verdict
    if verdict:
        best = 49.2 - 10
        assert outcome.values == pytest.approx([19 / best, 4.2 / best, 9.1 / best])
        assert "score 1.00 clipped and 0.72 (from 0.51 to 0.89) not" in outcome.measured


@pytest.mark.parametrize("clip", [claims._CLIPPED, claims._FREE])
def test_both_trainings_of_the_claim_can_be_built(clip):
    assert build_trainer(claims._recipe(0, clip)).config.clip_range == clip
