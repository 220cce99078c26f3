"""The paper's claims hold, and would fail for another data type."""

import pytest

from axon_core.papers import check_claim, find_card

PAPER = find_card("qlora").paper
CLAIMS = {claim.id: claim for claim in PAPER.claim}


@pytest.mark.parametrize("name", CLAIMS)
def test_holds(name):
    result = check_claim(PAPER, CLAIMS[name])
    assert result.verdict in ("reproduced", "direction holds"), result.measured


@pytest.mark.parametrize("name", ["quantiles", "normal-weights"])
def test_fails_for_evenly_spaced_levels(name, monkeypatch):
    even = tuple((i - 7) / 8 for i in range(16))
    monkeypatch.setattr("axon_qlora.claims.LEVELS", even)
    monkeypatch.setattr("axon_qlora.nf4.LEVELS", even)
    assert check_claim(PAPER, CLAIMS[name]).verdict == "failed"


def test_fails_without_the_second_quantisation(monkeypatch):
    monkeypatch.setattr("axon_qlora.linear.to_double", lambda absmax: (absmax, None, None))
    assert check_claim(PAPER, CLAIMS["double-quantisation"]).verdict == "failed"
