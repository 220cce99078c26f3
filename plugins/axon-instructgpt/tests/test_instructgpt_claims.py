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


@pytest.mark.parametrize(
    ("plain", "mixed", "verdict"),
    [
        ((3.0, 0.6), (2.6, 0.5), "direction"),
        ((3.0, 0.6), (3.1, 0.6), False),  # it mitigates nothing
        ((3.0, 0.6), (2.4, 0.3), False),  # it does by not learning what PPO is for
        ((2.4, 0.6), (2.3, 0.6), False),  # there is nothing to mitigate
        ((3.0, 0.2), (2.6, 0.2), False),  # PPO gains nothing
    ],
)
def test_what_ptx_mitigates_is_judged_beside_what_it_costs(monkeypatch, plain, mixed, verdict):
    before = claims._State(2.5, 0.2)
    after = {None: claims._State(*plain), claims._GAMMA: claims._State(*mixed)}
    monkeypatch.setattr(claims, "_trained", lambda seed, gamma: claims._Run(before, after[gamma]))
    outcome = claims.ptx()
    assert outcome.passed == verdict
    assert outcome.values == pytest.approx([plain[0] - mixed[0]] * 3)
    assert f"2.50 nats per byte before, {plain[0]:.2f} after PPO and {mixed[0]:.2f} after PPO-ptx" in outcome.measured
