"""The paper's exact claims hold, and would fail for an embedding that is not RoFormer's."""

import pytest
import torch

from axon_core.interfaces import Rotation
from axon_core.papers import check_claim, find_card
from axon_roformer import Rotary

PAPER = find_card("roformer").paper
EXACT = [claim for claim in PAPER.claim if claim.scale == "exact"]


@pytest.mark.parametrize("claim", EXACT, ids=lambda claim: claim.id)
def test_holds(claim):
    result = check_claim(PAPER, claim)
    assert result.verdict == "reproduced", result.measured


def unrotated(self, positions):
    return Rotation.of(torch.zeros(*positions.shape, self.config.dim // 2), self.config.layout)


def quadratic(self, positions):
    return Rotation.of(positions.unsqueeze(-1) ** 2 * self.frequencies / 50, self.config.layout)


def backwards(self, positions):
    return Rotation.of(positions.unsqueeze(-1) * -self.frequencies, self.config.layout)


@pytest.mark.parametrize(
    ("claim", "wrong"),
    [("relative-position", unrotated), ("relative-position", quadratic), ("efficient-realization", backwards)],
)
def test_fails_for_another_embedding(claim, wrong, monkeypatch):
    monkeypatch.setattr(Rotary, "forward", wrong)
    assert check_claim(PAPER, next(c for c in EXACT if c.id == claim)).verdict == "failed"


def test_the_bound_decays_only_with_spread_frequencies(monkeypatch):
    monkeypatch.setattr("axon_roformer.claims.frequencies", lambda dim, base: torch.full((dim // 2,), 0.5))
    assert check_claim(PAPER, next(c for c in EXACT if c.id == "long-term-decay")).verdict == "failed"


def test_the_decay_has_its_figure(tmp_path):
    result = check_claim(PAPER, next(c for c in EXACT if c.id == "long-term-decay"), out=tmp_path)
    assert (tmp_path / result.figure).stat().st_size > 1000
