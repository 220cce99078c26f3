"""The paper's exact claims hold, and would fail for another residual stream."""

import pytest
import torch

from axon_core.papers import check_claim, find_card
from axon_denseformer import DepthWeightedAverage

PAPER = find_card("denseformer").paper
EXACT = {claim.id: claim for claim in PAPER.claim if claim.scale == "exact"}


@pytest.mark.parametrize("name", EXACT)
def test_holds(name):
    result = check_claim(PAPER, EXACT[name])
    assert result.verdict == "reproduced", result.measured


def test_fails_if_the_embeddings_are_left_out(monkeypatch):
    def forward(self, x, past):
        past.append(x)
        layer = len(past) - 1
        return sum((w * y for w, y in zip(self.weights[layer - 1][1:], past[1:], strict=True)), 0 * x) if layer else x

    monkeypatch.setattr(DepthWeightedAverage, "forward", forward)
    assert check_claim(PAPER, EXACT["average"]).verdict == "failed"


def test_fails_if_each_feature_has_weights_of_its_own(monkeypatch):
    init = DepthWeightedAverage.__init__

    def more(self, config):
        init(self, config)
        self.features = torch.nn.Parameter(torch.zeros(config.n_layers, config.dim))

    monkeypatch.setattr(DepthWeightedAverage, "__init__", more)
    assert check_claim(PAPER, EXACT["few-parameters"]).verdict == "failed"
