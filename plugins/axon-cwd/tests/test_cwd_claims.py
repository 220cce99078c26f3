"""The paper's exact claims hold, and would fail for decoupled weight decay."""

import pytest

import axon_cwd.claims
from axon_core.papers import check_claim, find_card

PAPER = find_card("cwd").paper
EXACT = [claim for claim in PAPER.claim if claim.scale == "exact"]


@pytest.mark.parametrize("claim", EXACT, ids=lambda claim: claim.id)
def test_holds(claim):
    result = check_claim(PAPER, claim)
    assert result.verdict == "reproduced", result.measured


@pytest.mark.parametrize("claim", EXACT, ids=lambda claim: claim.id)
def test_fails_for_decoupled_decay(claim, monkeypatch):
    monkeypatch.setattr(axon_cwd.claims, "_attach", lambda optimizer: None)
    assert check_claim(PAPER, claim).verdict == "failed"
