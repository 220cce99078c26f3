"""The paper's exact claims hold, and would fail for another attention."""

import pytest
import torch

from axon_core.papers import check_claim, find_card
from axon_resformer import ValueResidualAttention

PAPER = find_card("resformer").paper
EXACT = {claim.id: claim for claim in PAPER.claim if claim.scale == "exact"}


@pytest.mark.parametrize("name", EXACT)
def test_holds(name):
    result = check_claim(PAPER, EXACT[name])
    assert result.verdict == "reproduced", result.measured


def test_fails_if_the_values_are_added_instead(monkeypatch):
    monkeypatch.setattr("axon_resformer.attention.mix_values", lambda v, first, weight: v + weight * first)
    assert check_claim(PAPER, EXACT["value-residual"]).verdict == "failed"


def test_fails_if_the_first_values_are_kept_beside_the_others(monkeypatch):
    state = ValueResidualAttention.state
    monkeypatch.setattr(ValueResidualAttention, "state", lambda self: {**state(self), "first": state(self)["v"]})
    assert check_claim(PAPER, EXACT["same-cost"]).verdict == "failed"


def test_fails_if_each_feature_has_a_weight(monkeypatch):
    init = ValueResidualAttention.__init__

    def more(self, config, rotary=None):
        init(self, config, rotary)
        self.weights = torch.nn.Parameter(torch.zeros(config.head_dim))

    monkeypatch.setattr(ValueResidualAttention, "__init__", more)
    assert check_claim(PAPER, EXACT["same-cost"]).verdict == "failed"
