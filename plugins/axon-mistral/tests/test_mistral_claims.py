"""The paper's exact claims hold, and would fail for another attention."""

import pytest

from axon_core.papers import check_claim, find_card
from axon_mistral import attention

PAPER = find_card("mistral").paper
EXACT = {claim.id: claim for claim in PAPER.claim if claim.scale == "exact"}


@pytest.mark.parametrize("name", EXACT)
def test_holds(name):
    result = check_claim(PAPER, EXACT[name])
    assert result.verdict == "reproduced", result.measured


@pytest.mark.parametrize(("name", "reach"), [("span", 1), ("span", -1), ("chunks", 1), ("rolling-cache", 1)])
def test_fails_if_a_token_sees_another_number_of_tokens(name, reach, monkeypatch):
    monkeypatch.setattr(attention._Near, "__call__", lambda self, query, key: key > query - self.window - reach)
    assert check_claim(PAPER, EXACT[name]).verdict == "failed"


def test_fails_if_the_cache_holds_more(monkeypatch):
    state = attention.GroupedQueryAttention.state
    monkeypatch.setattr(attention.SlidingWindowAttention, "state", state)
    assert check_claim(PAPER, EXACT["rolling-cache"]).verdict == "failed"
