"""The paper's exact claims hold, and would fail for an embedding that is not YaRN's."""

import pytest
import torch

from axon_core.papers import check_claim, find_card
from axon_roformer import Rotary
from axon_yarn import YarnRotary

PAPER = find_card("yarn").paper
EXACT = {claim.id: claim for claim in PAPER.claim if claim.scale == "exact"}


@pytest.mark.parametrize("name", EXACT)
def test_holds(name):
    result = check_claim(PAPER, EXACT[name])
    assert result.verdict == "reproduced", result.measured


def test_fails_where_all_pairs_are_interpolated(monkeypatch):
    def linear(self, dtype=torch.float32):
        return Rotary._frequencies(self, dtype) / self.config.factor

    monkeypatch.setattr(YarnRotary, "_frequencies", linear)
    assert check_claim(PAPER, EXACT["by-parts"]).verdict == "failed"


def test_fails_without_the_temperature(monkeypatch):
    monkeypatch.setattr(YarnRotary, "scale", 1.0)
    assert check_claim(PAPER, EXACT["temperature"]).verdict == "failed"
