"""The exact claims hold, and fail for another architecture."""

import pytest

from axon_core.papers import check_claim, find_card
from axon_xllama import claims

PAPER = find_card("xllama").paper
EXACT = {claim.id: claim for claim in PAPER.claim if claim.scale == "exact"}


@pytest.mark.parametrize("name", EXACT)
def test_holds(name):
    result = check_claim(PAPER, EXACT[name])
    assert result.verdict == "reproduced", result.measured


@pytest.mark.parametrize("changed", [{"tie_embeddings": True}, {"feed_forward": "relu2"}, {"attention": "MQA"}])
def test_sizes_fail_for_another_architecture(changed, monkeypatch):
    built = claims.XLlama.build
    monkeypatch.setattr(claims.XLlama, "build", lambda **options: built(**{**options, **changed}))
    assert check_claim(PAPER, EXACT["sizes"]).verdict == "failed"
