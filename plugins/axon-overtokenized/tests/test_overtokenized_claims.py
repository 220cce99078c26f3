"""The paper's exact claims hold, and would fail for another embedding."""

import pytest
import torch

from axon_core.nn import Linear
from axon_core.papers import check_claim, find_card
from axon_overtokenized import NGramEmbedding

PAPER = find_card("overtokenized").paper
EXACT = {claim.id: claim for claim in PAPER.claim if claim.scale == "exact"}


@pytest.mark.parametrize("name", EXACT)
def test_holds(name):
    result = check_claim(PAPER, EXACT[name])
    assert result.verdict == "reproduced", result.measured


def test_fails_if_the_table_is_a_product_with_one_hot_rows(monkeypatch):
    def forward(self, input, scope=None, cache=None):
        rows = torch.nn.functional.one_hot(input % self.config.rows, self.config.rows).float()
        return self.weight[input] + rows @ self.tables[0].weight

    monkeypatch.setattr(NGramEmbedding, "forward", forward)
    assert check_claim(PAPER, EXACT["no-additional-cost"]).verdict == "failed"


def test_fails_if_another_part_grows(monkeypatch):
    init = NGramEmbedding.__init__

    def more(self, config):
        init(self, config)
        self.extra = Linear(config.rows, config.dim)

    monkeypatch.setattr(NGramEmbedding, "__init__", more)
    assert check_claim(PAPER, EXACT["decoupled"]).verdict == "failed"
