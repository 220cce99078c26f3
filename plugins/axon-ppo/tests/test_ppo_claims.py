"""The exact claims hold, and their checks can fail."""

import torch

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
