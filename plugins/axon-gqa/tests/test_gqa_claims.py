"""The claims that are identities hold; the scaled ones are run by `axon reproduce`."""

from __future__ import annotations

import pytest

from axon_core.claims import check
from axon_core.paper import card

PAPER = card("gqa").paper


@pytest.mark.parametrize("claim", [c for c in PAPER.claim if c.scale == "exact"], ids=lambda c: c.id)
def test_exact_claims_are_reproduced(claim) -> None:
    result = check(PAPER, claim)
    assert result.verdict == "reproduced", result.measured
