"""The claims of the card: what is exact is reproduced; what needs trained models says what it lacks."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from axon_core.papers import check_claim, find_card
from axon_transformer import training_claims

PAPER = find_card("transformer").paper
EXACT, TRAINED = ([c for c in PAPER.claim if (c.scale == "exact") is exact] for exact in (True, False))


@pytest.mark.parametrize("claim", EXACT, ids=lambda claim: claim.id)
def test_claims_are_reproduced(claim) -> None:
    result = check_claim(PAPER, claim)
    assert result.verdict == "reproduced", result.measured


@pytest.mark.parametrize("claim", TRAINED, ids=lambda claim: claim.id)
def test_claims_that_need_data_are_not_run_without(claim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AXON_DATA_DIR", raising=False)
    result = check_claim(PAPER, claim)
    assert result.verdict == "not run" and "needs Multi30k: set AXON_DATA_DIR" in result.measured


TINY = (
    "data.train={ reverse = 150 }",
    "data.valid={ reverse = 10 }",
    "data.tokenizer=byte",
    "model.dim=16",
    "model.encoder_layers=1",
    "model.decoder_layers=1",
    "trainer.batch_size=64",
    "trainer.steps=100",
)


@pytest.mark.slow
@pytest.mark.parametrize("claim", TRAINED, ids=lambda claim: claim.id)
def test_claims_that_need_trained_models_are_measured(claim, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a toy in place of the data; what comes out means nothing, that it comes out for each seed does."""
    monkeypatch.setenv("AXON_DATA_DIR", "not used")
    monkeypatch.setattr(training_claims, "_SETTINGS", (*training_claims._SETTINGS, *TINY))
    monkeypatch.setattr(training_claims, "_SEEDS", (0, 1))
    result = check_claim(PAPER, claim)
    assert result.verdict in ("direction holds", "failed") and len(result.values) == 2, result.measured
    assert "BLEU" in result.measured and result.measured.endswith("(2 seeds) (scaled)")


BY_ID = {claim.id: claim for claim in TRAINED}


@pytest.mark.parametrize(("gain", "verdict"), [(1, "direction holds"), (-1, "failed")])
def test_verdicts_follow_what_is_measured(gain: int, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores are made up: BLEU by beam, by smoothing, and by the weight of a model that is one number."""
    trainers = [SimpleNamespace(model=torch.nn.Linear(1, 1, bias=False)) for _ in training_claims._SEEDS]
    latest = [{"weight": torch.full((1, 1), float(-gain * i))} for i in range(5)]
    for trainer in trainers:
        trainer.model.load_state_dict(latest[-1])

    def made_up(trainer: Any, search: Any) -> float:
        return gain * search.beam + trainer.model.weight.item()

    monkeypatch.setattr(training_claims, "_trained", lambda smoothing, seed: (trainers[seed], latest))
    monkeypatch.setattr(training_claims, "_bleu", made_up)
    for claim, values in (("beam-search", [3.0 * gain] * 3), ("averaging", [2.0 * gain] * 3)):
        result = check_claim(PAPER, BY_ID[claim])
        assert result.verdict == verdict and list(result.values) == values, result.measured
    assert all(trainer.model.weight.item() == -4 * gain for trainer in trainers)  # averaging puts the weights back

    monkeypatch.setattr(training_claims, "_trained", lambda smoothing, seed: (smoothing, []))
    for worse, hurts in ((40, True), (-40, False)):  # where perplexity falls, the claim fails whatever BLEU does
        monkeypatch.setattr(training_claims, "_scores", lambda eps, worse=worse: (9 + worse * eps, gain * eps))
        result = check_claim(PAPER, BY_ID["label-smoothing"])
        assert result.verdict == (verdict if hurts else "failed")
        assert list(result.values) == pytest.approx([0.1 * gain] * 3)


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Let no test see the models that another trained."""
    yield
    training_claims._trained.cache_clear()
