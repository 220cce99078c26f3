"""The claims that are identities hold; the scaled ones are run by `axon reproduce`, and here judge given figures."""

from __future__ import annotations

import pytest
import torch

from axon_core.papers import check_claim, find_card
from axon_gqa import claims, timing

PAPER = find_card("gqa").paper


@pytest.mark.parametrize("claim", [c for c in PAPER.claim if c.scale == "exact"], ids=lambda c: c.id)
def test_exact_claims_are_reproduced(claim) -> None:
    result = check_claim(PAPER, claim)
    assert result.verdict == "reproduced", result.measured


@pytest.mark.parametrize(
    ("after", "verdict"),
    [
        ({4: 2.1, 1: 2.5}, "direction holds"),  # of 0.4 and 1.0 that the conversion cost, 0.1 and 0.5 are left
        ({4: 2.3, 1: 2.5}, "failed"),  # most of it is left
        ({4: 2.1, 1: 2.05}, "failed"),  # the smaller cache does better
    ],
)
def test_uptraining_is_judged_by_what_it_regains(after: dict[int, float], verdict: str, monkeypatch) -> None:
    before = {4: 2.4, 1: 3.0}
    monkeypatch.setattr(claims, "pretrained", lambda seed: seed)
    monkeypatch.setattr(claims, "held_out_loss", lambda model: 2.0)
    monkeypatch.setattr(claims, "_converted", lambda seed, k, how: (before[k], after[k]))
    (claim,) = [claim for claim in PAPER.claim if claim.id == "uptraining"]
    result = check_claim(PAPER, claim)
    assert result.verdict == verdict
    assert result.values == pytest.approx([100 * (2.4 - after[4]) / 0.4] * 3)
    assert f"loss 2.000 for MHA, {after[4]:.3f} for GQA-4, {after[1]:.3f} for MQA" in result.measured


@pytest.mark.parametrize(
    ("seconds", "verdict"),
    [
        ({8: 0.02, 2: 0.005, 1: 0.004}, "direction holds"),
        ({8: 0.02, 2: 0.004, 1: 0.005}, "direction holds"),  # nearly as fast as MQA, or as fast: the noise decides
        ({8: 0.02, 2: 0.021, 1: 0.005}, "failed"),
    ],
)
def test_decoding_is_judged_by_medians(seconds: dict[int, float], verdict: str, monkeypatch) -> None:
    monkeypatch.setattr(timing, "step_seconds", lambda groups: {k: seconds[k] for k in groups})
    (claim,) = [claim for claim in PAPER.claim if claim.id == "decoding-speed"]
    result = check_claim(PAPER, claim)
    assert result.verdict == verdict
    assert f"takes 20.0 ms with 8 heads, {1000 * seconds[2]:.1f} ms with 2" in result.measured


def test_what_is_timed_is_one_token_after_all_those_kept(monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(timing, "TOKENS", 40)
    monkeypatch.setattr(timing, "ROUNDS", 3)
    attend = timing.GroupedQueryAttention.forward

    def watched(self, x, scope, *, cache=None):
        seen.append((self.config.n_kv_heads, x.shape[:2], scope.positions.unique().tolist()))
        return attend(self, x, scope, cache=cache)

    monkeypatch.setattr(timing.GroupedQueryAttention, "forward", watched)
    state = torch.get_rng_state()
    assert timing.step_seconds((8, 1)).keys() == {8, 1}
    assert torch.equal(torch.get_rng_state(), state)
    assert seen == [(k, (timing.ROWS, 1), [40 + i]) for i in range(3) for k in (8, 1)]  # in turn, after 40 tokens
