"""The paper's exact claims hold, and fail for passes and memory that are not the paper's."""

import pytest
import torch

from axon_core.papers import check_claim, find_card
from axon_eet.packed import Packed
from axon_eet.small_decoder import SmallDecoder

PAPER = find_card("eet").paper
EXACT = [claim for claim in PAPER.claim if claim.scale == "exact"]


def verdict(name):
    return check_claim(PAPER, next(claim for claim in EXACT if claim.id == name)).verdict


@pytest.mark.parametrize("claim", EXACT, ids=lambda claim: claim.id)
def test_holds(claim):
    result = check_claim(PAPER, claim)
    assert result.verdict == "reproduced", result.measured


def test_a_pass_with_the_positions_of_the_row_is_not_as_if_alone(monkeypatch):
    made = Packed.of.__func__

    def in_the_row(cls, texts, device):
        packed = made(cls, texts, device)
        packed.positions.copy_(torch.arange(packed.positions.shape[1]))
        return packed

    monkeypatch.setattr(Packed, "of", classmethod(in_the_row))
    assert verdict("as-if-alone") == "failed"


def test_a_model_that_keeps_all_its_features_takes_more_memory_the_deeper_it_is(monkeypatch):
    features, kept = SmallDecoder.features, []

    def keep(self, *given, **options):
        handles = [layer.register_forward_hook(lambda *found: kept.append(found[2])) for layer in self.layers]
        try:
            return features(self, *given, **options)
        finally:
            for handle in handles:
                handle.remove()

    monkeypatch.setattr(SmallDecoder, "features", keep)
    assert verdict("memory") == "failed"
