"""The paper's exact claims hold, and would fail for updates that are not LoRA's."""

import pytest
import torch

import axon_lora.lora
from axon_core.papers import check_claim, find_card
from axon_lora import LowRank

PAPER = find_card("lora").paper
EXACT = {claim.id: claim for claim in PAPER.claim if claim.scale == "exact"}


@pytest.mark.parametrize("name", EXACT)
def test_holds(name):
    result = check_claim(PAPER, EXACT[name])
    assert result.verdict == "reproduced", result.measured


def test_fails_where_the_scale_is_forgotten_in_merging(monkeypatch):
    merged = axon_lora.lora.merged_weight

    def without_scale(weight, updates, **parts):
        return merged(weight, [axon_lora.LowRankUpdate(u.part, u.rows, u.rank, 2 * u.scale) for u in updates], **parts)

    monkeypatch.setattr(axon_lora.lora, "merged_weight", without_scale)
    assert check_claim(PAPER, EXACT["no-latency"]).verdict == "failed"


def test_fails_where_b_does_not_begin_at_zero(monkeypatch):
    begin = LowRank.__init__

    def drawn(self, *args, **options):
        begin(self, *args, **options)
        for b in self.b:
            torch.nn.init.normal_(b)

    monkeypatch.setattr(LowRank, "__init__", drawn)
    assert check_claim(PAPER, EXACT["begins-as-base"]).verdict == "failed"
