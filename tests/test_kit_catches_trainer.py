"""The conformance kit catches broken trainers: each by the check that is meant for its mistake."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from caught import Row, assert_caught
from healthy_parts import Guess
from torch import Tensor, nn

from axon_core.randomness import Key
from axon_core.training.recipe import Recipe
from axon_core.training.trainer import Trainer


class ReturnsMeans(Guess):
    def loss(self, data: dict[str, Tensor]) -> Mapping[str, Tensor]:
        return {"loss": super().loss(data)["loss"] / len(data["y"])}


class NamesOtherCounts(Guess):
    def counts(self, data: dict[str, Tensor]) -> Mapping[str, float]:
        return {"tokens": len(data["y"])}


class CountsTheBatch(Guess):
    def counts(self, data: dict[str, Tensor]) -> Mapping[str, float]:
        return {"loss": self.config.batch_size}


class ScalesItsDataInTheLoss(Guess):
    """A second epoch would learn from other numbers."""

    def loss(self, data: dict[str, Tensor]) -> Mapping[str, Tensor]:
        data["x"] /= 2
        return super().loss(data)


class CollectsInPlace(Guess):
    def collect(self, batch: dict[str, Tensor], key: Key) -> dict[str, Tensor]:
        batch["x"] += 1
        return batch


class AddsToItsData(Guess):
    def counts(self, data: dict[str, Tensor]) -> Mapping[str, float]:
        data["weights"] = torch.ones(len(data["y"]))
        return super().counts(data)


class CountsNothing(Guess):
    def counts(self, data: dict[str, Tensor]) -> Mapping[str, float]:
        return {"loss": 0}


class AdvancesItsGenerator(Guess):
    calls = 0

    def batch(self, step: int) -> dict[str, Tensor]:
        self.calls += 1
        return super().batch(self.calls)


class RepeatsItsBatch(Guess):
    def batch(self, step: int) -> dict[str, Tensor]:
        return super().batch(0)


class HasRaggedBatch(Guess):
    def batch(self, step: int) -> dict[str, Tensor]:
        return {**super().batch(step), "weights": torch.ones(1)}


class CollectsUnkeyedNoise(Guess):
    generator = torch.Generator()

    def collect(self, batch: dict[str, Tensor], key: Key) -> dict[str, Tensor]:
        return {**batch, "x": batch["x"] + torch.randn(batch["x"].shape, generator=self.generator)}


class CollectsScoresAhead(Guess):
    collects_ahead = True

    def collect(self, batch: dict[str, Tensor], key: Key) -> dict[str, Tensor]:
        return {**batch, "scores": self.models["model"](batch["x"])}


class TrainsWithoutGradient(Guess):
    def loss(self, data: dict[str, Tensor]) -> Mapping[str, Tensor]:
        return {"loss": 0 * super().loss(data)["loss"]}


class SetsItsOwnMode(Guess):
    def loss(self, data: dict[str, Tensor]) -> Mapping[str, Tensor]:
        self.models["model"].eval()
        return super().loss(data)


class TrainsAStranger(Guess):
    trainable = ("policy",)


class EvaluatesAtRandom(Guess):
    def evaluate(self) -> dict[str, float]:
        return {"loss": float(torch.rand(()))}


class TrainsWhileItEvaluates(Guess):
    def evaluate(self) -> dict[str, float]:
        self.models["frozen"].bias.add_(1.0)
        return super().evaluate()


class LosesItsState(Guess):
    coefficient = 1.0

    def loss(self, data: dict[str, Tensor]) -> Mapping[str, Tensor]:
        self.coefficient *= 0.5
        return super().loss(data)

    def state_dict(self) -> dict[str, Any]:
        return {"coefficient": self.coefficient}


class KeepsAnObject(Guess):
    def state_dict(self) -> dict[str, Any]:
        return {"generator": torch.Generator()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class ExportsNothing(Guess):
    def export(self, folder: Path) -> None:
        pass


class DescribesNothing(Guess):
    class Config(Trainer.Config):
        beta: float = 0.1


class CutsAtRandom(Guess):
    def minibatches(self, data: dict[str, Tensor], key: Key) -> Iterable[dict[str, Tensor]]:
        order = list(range(len(data["y"])))
        random.shuffle(order)
        return [{name: rows[i : i + 1] for name, rows in data.items()} for i in order]


class ForgetsToCopyItsReference(Guess):
    @classmethod
    def from_recipe(cls, recipe: Recipe, saved: Path | None = None) -> Self:
        policy = nn.Linear(3, 4)
        return cls(cls.Config(**recipe.trainer.options), {"reference": nn.Sequential(policy), "model": policy})


class DetachesItsLoss(Guess):
    def loss(self, data: dict[str, Tensor]) -> Mapping[str, Tensor]:
        return {name: term.detach() for name, term in super().loss(data).items()}


class LosesTheMiddleOfItsState(Guess):
    """A table too long to be printed whole."""

    def __init__(self, config: Trainer.Config, models: Mapping[str, nn.Module]) -> None:
        super().__init__(config, models)
        self.table = torch.zeros(5000)

    def loss(self, data: dict[str, Tensor]) -> Mapping[str, Tensor]:
        self.table[2500] += 1
        return super().loss(data)

    def state_dict(self) -> dict[str, Any]:
        return {"table": self.table}


ROWS: list[Row] = [
    (CutsAtRandom, "minibatches", {"inputs_unchanged", "collect"}),
    (ForgetsToCopyItsReference, "roles", set()),
    (DetachesItsLoss, "gradient", set()),
    (LosesTheMiddleOfItsState, "state_dict", set()),
    (ReturnsMeans, "additive", set()),
    (NamesOtherCounts, "additive", set()),
    (CountsTheBatch, "additive", set()),
    (ScalesItsDataInTheLoss, "inputs_unchanged", {"additive"}),
    (CollectsInPlace, "inputs_unchanged", set()),
    (AddsToItsData, "inputs_unchanged", set()),
    (CountsNothing, "positive_counts", set()),
    (AdvancesItsGenerator, "batch", {"collect", "evaluate", "export"}),
    (RepeatsItsBatch, "batch", set()),
    (HasRaggedBatch, "batch", set()),
    (CollectsUnkeyedNoise, "collect", set()),
    (CollectsScoresAhead, "collects_ahead", set()),
    (TrainsWithoutGradient, "gradient", set()),
    (SetsItsOwnMode, "modes", set()),
    (TrainsAStranger, "roles", {"gradient"}),
    (EvaluatesAtRandom, "evaluate", set()),
    (TrainsWhileItEvaluates, "evaluate", set()),
    (LosesItsState, "state_dict", set()),
    (KeepsAnObject, "state_dict", set()),
    (ExportsNothing, "export", set()),
    (DescribesNothing, "config_json", set()),
]


@pytest.mark.parametrize(("broken", "caught_by", "also"), ROWS)
def test_broken_trainer_is_caught(broken: type[Any], caught_by: str, also: Set[str]) -> None:
    assert_caught(broken, caught_by, also)
