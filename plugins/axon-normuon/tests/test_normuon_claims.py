"""The paper's exact claims hold."""

import pytest

from axon_core.papers import check_claim, find_card

PAPER = find_card("normuon").paper
EXACT = [claim for claim in PAPER.claim if claim.scale == "exact"]


@pytest.mark.parametrize("claim", EXACT, ids=lambda claim: claim.id)
def test_holds(claim):
    result = check_claim(PAPER, claim)
    assert result.verdict == "reproduced", result.measured
