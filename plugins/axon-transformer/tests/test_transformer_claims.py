"""Every claim of the card is reproduced."""

from __future__ import annotations

import pytest

from axon_core.claims import check
from axon_core.paper import card

PAPER = card("transformer").paper


@pytest.mark.parametrize("claim", PAPER.claim, ids=lambda claim: claim.id)
def test_claims_are_reproduced(claim) -> None:
    result = check(PAPER, claim)
    assert result.verdict == "reproduced", result.measured
