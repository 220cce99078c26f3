"""The claims that are quick to check hold; each check can fail."""

import pytest
import torch

from axon_instructgpt import claims


@pytest.mark.parametrize("check", [claims.single_element, claims.log_odds], ids=lambda check: check.__name__)
def test_a_claim_holds(check):
    outcome = check()
    assert outcome.passed, outcome.measured


def test_a_loss_that_sums_over_pairs_would_be_noticed(monkeypatch):
    right = claims.ranking_loss
    monkeypatch.setattr(claims, "ranking_loss", lambda *args: 36 * right(*args))
    assert not claims.single_element().passed


def test_a_loss_with_a_margin_would_be_noticed(monkeypatch):
    right = claims.ranking_loss
    monkeypatch.setattr(claims, "ranking_loss", lambda s, p, m: right(s, p, m + torch.ones_like(m)))
    assert not claims.log_odds().passed
