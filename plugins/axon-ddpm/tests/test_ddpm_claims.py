"""The claims that are quick to check, and that a mistake would fail them."""

import pytest

from axon_core import Key
from axon_ddpm import claims
from axon_ddpm.quality import FRECHET


def test_exact_claims_hold():
    assert claims.parameters().passed is True
    assert claims.weighted_error().passed is True


def test_a_wrong_posterior_is_noticed(monkeypatch):
    right = claims.Process.posterior_mean

    def wrong(self, x0, x_t, t):
        return right(self, x0, x_t, (t - 1).clamp(min=0))

    monkeypatch.setattr(claims.Process, "posterior_mean", wrong)
    assert claims.weighted_error().passed is False


@pytest.mark.parametrize(("distances", "passed"), [((1.0, 2.0, 3.0), True), ((2.0, 1.0, 3.0), False)])
def test_the_ablation_reports_the_direction_as_it_comes_out(monkeypatch, distances, passed):
    names = [(loss, len(chain)) for loss, chain in claims._WAYS.values()]
    of = dict(zip(names, distances, strict=True))
    monkeypatch.setattr(claims, "_distance", lambda seed, loss, chain: of[loss, len(chain)])
    found = claims.prediction_and_loss()
    assert found.passed is passed and len(found.values) == 3


def test_the_ablation_builds_the_three_ways(monkeypatch):
    class Result:
        def __init__(self, trainer, progress):
            loss = trainer.loss(trainer.collect(trainer.batch(0), Key((0,))))["loss"]
            assert loss.isfinite()
            self.metrics = {FRECHET: len(trainer.model.head.bias)}

    monkeypatch.setattr(claims, "fit", Result)
    assert [claims._distance(0, loss, dict(chain)) for loss, chain in claims._WAYS.values()] == [1, 1, 2]
