"""The paper's exact claims hold, and would fail for another mixture."""

import pytest
import torch

from axon_core.papers import check_claim, find_card
from axon_mixtral import MixtureOfExperts

PAPER = find_card("mixtral").paper
EXACT = {claim.id: claim for claim in PAPER.claim if claim.scale == "exact"}


@pytest.mark.parametrize("name", EXACT)
def test_holds(name):
    result = check_claim(PAPER, EXACT[name])
    assert result.verdict == "reproduced", result.measured


def test_fails_if_the_weights_are_a_softmax_over_all_experts(monkeypatch):
    def forward(self, x, scope):
        scores = self.router(x).softmax(-1)
        largest, chosen = scores.topk(self.config.top_k, -1)
        return self._sparse(x, chosen, largest)

    monkeypatch.setattr(MixtureOfExperts, "forward", forward)
    assert check_claim(PAPER, EXACT["sparse"]).verdict == "failed"


def test_fails_if_one_more_expert_computes(monkeypatch):
    init = MixtureOfExperts.__init__

    def more(self, config):
        init(self, config)
        self.experts.append(torch.nn.Linear(config.dim, 3 * config.hidden_dim, bias=False))

    monkeypatch.setattr(MixtureOfExperts, "__init__", more)
    assert check_claim(PAPER, EXACT["active"]).verdict == "failed"
