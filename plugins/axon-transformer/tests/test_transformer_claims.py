"""The claims of the card: what is exact is reproduced; what needs trained models says what it lacks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from axon_core.claims import check
from axon_core.paper import card
from axon_transformer import training_claims

PAPER = card("transformer").paper
EXACT, TRAINED = ([c for c in PAPER.claim if (c.scale == "exact") is exact] for exact in (True, False))


@pytest.mark.parametrize("claim", EXACT, ids=lambda claim: claim.id)
def test_claims_are_reproduced(claim) -> None:
    result = check(PAPER, claim)
    assert result.verdict == "reproduced", result.measured


@pytest.mark.parametrize("claim", TRAINED, ids=lambda claim: claim.id)
def test_claims_that_need_data_are_not_run_without(claim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AXON_DATA_DIR", raising=False)
    result = check(PAPER, claim)
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


@pytest.mark.parametrize("claim", TRAINED, ids=lambda claim: claim.id)
def test_claims_that_need_trained_models_are_measured(claim, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a toy in place of the data; what comes out means nothing, that it comes out for each seed does."""
    monkeypatch.setenv("AXON_DATA_DIR", "not used")
    monkeypatch.setattr(training_claims, "_SETTINGS", (*training_claims._SETTINGS, *TINY))
    monkeypatch.setattr(training_claims, "_SEEDS", (0, 1))
    result = check(PAPER, claim)
    assert result.verdict in ("direction holds", "failed") and len(result.values) == 2, result.measured
    assert "BLEU" in result.measured and result.measured.endswith("(2 seeds) (scaled)")


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Let no test see the models that another trained."""
    yield
    training_claims._trained.cache_clear()
