"""The paper's exact claims hold, and would fail for another norm."""

import pytest
from torch import nn

import axon_rmsnorm.claims
from axon_core.papers import check_claim, find_card

PAPER = find_card("rmsnorm").paper
EXACT = [claim for claim in PAPER.claim if claim.scale == "exact"]


@pytest.mark.parametrize("claim", EXACT, ids=lambda claim: claim.id)
def test_holds(claim):
    result = check_claim(PAPER, claim)
    assert result.verdict == "reproduced", result.measured


WRONG = {
    "invariances": (nn.LayerNorm, nn.Identity),
    # LayerNorm proper shares the second property; one with a large eps does not.
    "implicit-learning-rate": (lambda dim: nn.LayerNorm(dim, eps=1.0), lambda dim: nn.Linear(dim, dim)),
}


@pytest.mark.parametrize("claim", EXACT, ids=lambda claim: claim.id)
@pytest.mark.parametrize("which", [0, 1], ids=["other-norm", "no-norm"])
def test_fails_for_what_is_not_rmsnorm(claim, which, monkeypatch):
    other = WRONG[claim.id][which]
    monkeypatch.setattr(axon_rmsnorm.claims, "_rms_norm", lambda dim, eps=0.0, partial=1.0: other(dim))
    assert check_claim(PAPER, claim).verdict == "failed"
