"""The paper's exact claims hold, and would fail for another token mixer."""

import pytest
import torch

from axon_core.nn import Linear
from axon_core.papers import check_claim, find_card
from axon_tsm import TokenShift

PAPER = find_card("tsm").paper
EXACT = {claim.id: claim for claim in PAPER.claim if claim.scale == "exact"}


@pytest.mark.parametrize("name", EXACT)
def test_holds(name):
    result = check_claim(PAPER, EXACT[name])
    assert result.verdict == "reproduced", result.measured


def test_fails_if_a_matrix_mixes_the_features(monkeypatch):
    init = TokenShift.__init__

    def more(self, config):
        init(self, config)
        self.mix = Linear(config.dim, config.dim)

    monkeypatch.setattr(TokenShift, "__init__", more)
    assert check_claim(PAPER, EXACT["zero-cost"]).verdict == "failed"


def test_fails_if_features_come_from_later_tokens(monkeypatch):
    monkeypatch.setattr(TokenShift, "forward", lambda self, x, scope, cache: torch.roll(x, -1, 1))
    assert check_claim(PAPER, EXACT["online"]).verdict == "failed"
