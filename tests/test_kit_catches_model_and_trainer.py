"""The conformance kit catches broken models and trainers: each by the check that is meant for its mistake."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout

from axon_core.attend import QKV, attend
from axon_core.cache import Cache, State
from axon_core.errors import ContractError
from axon_core.interfaces.model import CausalLM, Model
from axon_core.interfaces.trainer import Trainer
from axon_core.randomness import Key
from axon_core.recipe import Recipe
from axon_core.scope import Scope
from axon_core.testing import examine


class Tiny(CausalLM):
    """One layer of attention, without a mistake; the broken ones below override one step of it."""

    class Config(CausalLM.Config):
        dim: int = 8
        """Features."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.qkv = QKV(config.dim, 2, 2, config.dim // 2)
        self.head = nn.Linear(config.dim, config.vocab_size, bias=False)

    def features(
        self,
        tokens: Tensor,
        *,
        valid: Tensor | None = None,
        documents: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        x = self.embed(tokens, valid)
        scope, layer = self.scope(tokens, valid, documents), None
        if cache is not None:
            _, scope, (layer,) = cache.extend(tokens, valid)
        q, k, v = self.qkv(x)
        k, v = (k, v) if layer is None else layer.append(k=k, v=v)
        return x + attend(q, k, v, scope).flatten(-2)

    def embed(self, tokens: Tensor, valid: Tensor | None) -> Tensor:
        return self.embedding(tokens if valid is None else tokens.masked_fill(~valid, 0))

    def scope(self, tokens: Tensor, valid: Tensor | None, documents: Tensor | None) -> Scope:
        return Scope.over(tokens, valid=valid, documents=documents)

    def logits(self, features: Tensor) -> Tensor:
        return self.head(features)

    def new_cache(self, batch: int, capacity: int) -> Cache:
        state = State((2, self.config.dim // 2))
        dtype = self.head.weight.dtype
        return Cache([{"k": state, "v": state}], batch, capacity, dtype=dtype, device="cpu")

    def hidden_matrices(self) -> list[nn.Parameter]:
        return [self.qkv.projection.weight]


class SeesTheFuture(Tiny):
    def scope(self, tokens: Tensor, valid: Tensor | None, documents: Tensor | None) -> Scope:
        return Scope.over(tokens, causal=False, valid=valid, documents=documents)


class SeesTheFutureInTraining(Tiny):
    def scope(self, tokens: Tensor, valid: Tensor | None, documents: Tensor | None) -> Scope:
        return Scope.over(tokens, causal=not self.training, valid=valid, documents=documents)


class EmbedsPadding(Tiny):
    def embed(self, tokens: Tensor, valid: Tensor | None) -> Tensor:
        return self.embedding(tokens)


class IgnoresDocuments(Tiny):
    def scope(self, tokens: Tensor, valid: Tensor | None, documents: Tensor | None) -> Scope:
        return super().scope(tokens, valid, None)


class IgnoresCache(Tiny):
    def features(self, tokens: Tensor, *, cache: Cache | None = None, **more: Any) -> Tensor:
        return super().features(tokens, **more)


class LeavesPaddingOutOfTheCache(Tiny):
    def features(self, tokens: Tensor, *, valid: Tensor | None = None, **more: Any) -> Tensor:
        if more.get("cache") is not None and valid is not None:
            tokens, valid = tokens.masked_fill(~valid, 0), None
        return super().features(tokens, valid=valid, **more)


class KeepsOneCache(Tiny):
    def new_cache(self, batch: int, capacity: int) -> Cache:
        if not hasattr(self, "cache") or self.cache.capacity < capacity or self.cache.positions.shape[0] != batch:
            self.cache = super().new_cache(batch, capacity)
        elif self.cache.length == capacity:
            self.cache.reset()
        return self.cache


class UsesBatchStatistics(Tiny):
    def embed(self, tokens: Tensor, valid: Tensor | None) -> Tensor:
        x = super().embed(tokens, valid)
        return x - x.mean((0, 2), keepdim=True)


class UsesBatchStatisticsInTraining(Tiny):
    def embed(self, tokens: Tensor, valid: Tensor | None) -> Tensor:
        x = super().embed(tokens, valid)
        return x - x.mean((0, 2), keepdim=True) if self.training else x


class WritesIntoItsTokens(Tiny):
    def embed(self, tokens: Tensor, valid: Tensor | None) -> Tensor:
        return self.embedding(tokens if valid is None else tokens.masked_fill_(~valid, 0))


class NumbersItsDocumentsInPlace(Tiny):
    def scope(self, tokens: Tensor, valid: Tensor | None, documents: Tensor | None) -> Scope:
        return super().scope(tokens, valid, None if documents is None else documents.add_(1))


class SharesABuffer(Tiny):
    table = torch.ones(())

    def __init__(self, config: Tiny.Config) -> None:
        super().__init__(config)
        self.register_buffer("scale", self.table)

    def logits(self, features: Tensor) -> Tensor:
        return super().logits(features) * self.scale.to(features.dtype)


class ScoresTheLastPosition(Tiny):
    def forward(self, tokens: Tensor, **more: Any) -> Tensor:
        return super().forward(tokens, **more)[:, -1]


class ScalesLogitsInForward(Tiny):
    def forward(self, tokens: Tensor, **more: Any) -> Tensor:
        return 0.5 * super().forward(tokens, **more)


class HasUnusedLayer(Tiny):
    def __init__(self, config: Tiny.Config) -> None:
        super().__init__(config)
        self.spare = nn.Linear(2, 2)


class HasHiddenTensor(Tiny):
    def __init__(self, config: Tiny.Config) -> None:
        super().__init__(config)
        self.scale = torch.rand(())

    def logits(self, features: Tensor) -> Tensor:
        return super().logits(features) * self.scale


class CopiesItsMatrices(Tiny):
    def hidden_matrices(self) -> list[nn.Parameter]:
        return [nn.Parameter(self.qkv.projection.weight.detach().clone())]


class CallsEmbeddingAMatrixTwice(Tiny):
    def hidden_matrices(self) -> list[nn.Parameter]:
        return [self.qkv.projection.weight, self.qkv.projection.weight]


class HasIncompleteConfig(Model):
    """A model that is no language model, and whose width stands nowhere in its config."""

    width = 1

    def __init__(self, config: Model.Config) -> None:
        super().__init__(config)
        type(self).width += 1
        self.linear = nn.Linear(self.width, 2)


@pytest.mark.parametrize(
    ("broken", "caught_by", "also"),
    [
        (SeesTheFuture, "causal", {"cached", "cached_ragged", "caches_apart", "bfloat16"}),
        (SeesTheFutureInTraining, "causal", set()),
        (EmbedsPadding, "padding", {"cached_ragged"}),
        (IgnoresDocuments, "documents", set()),
        (IgnoresCache, "cached", {"cached_ragged", "caches_apart", "bfloat16"}),
        (LeavesPaddingOutOfTheCache, "cached_ragged", set()),
        (KeepsOneCache, "caches_apart", {"bfloat16"}),
        (UsesBatchStatistics, "neighbours", {"padding", "cached_ragged"}),
        (UsesBatchStatisticsInTraining, "neighbours", set()),
        (WritesIntoItsTokens, "inputs_unchanged", set()),
        (NumbersItsDocumentsInPlace, "inputs_unchanged", {"documents"}),
        (SharesABuffer, "instances_apart", set()),
        (HasUnusedLayer, "gradient", {"hidden_matrices"}),
        (HasHiddenTensor, "saved", set()),
        (CopiesItsMatrices, "hidden_matrices", set()),
        (CallsEmbeddingAMatrixTwice, "hidden_matrices", set()),
        (HasIncompleteConfig, "saved_state", set()),
    ],
)
def test_broken_model_is_caught(broken: type[Model], caught_by: str, also: set[str]) -> None:
    failures = examine(broken)
    assert caught_by in failures, failures
    assert failures.keys() - {caught_by} <= also, failures


@pytest.mark.parametrize("broken", [ScoresTheLastPosition, ScalesLogitsInForward])
def test_scores_that_are_not_one_per_position_are_caught(broken: type[CausalLM]) -> None:
    assert "shape" in examine(broken)


class DropsOut(Tiny):
    def logits(self, features: Tensor) -> Tensor:
        return super().logits(dropout(features, 0.5, self.training))


@pytest.mark.parametrize("healthy", [Tiny, DropsOut])
def test_healthy_model_passes(healthy: type[CausalLM]) -> None:
    assert examine(healthy) == {}


class Guess(Trainer):
    """Learns to score random labels, without a mistake; the broken ones below override one step of it."""

    examples = ({"trainer": {"type": "guess", "batch_size": 6}},)
    trainable: tuple[str, ...] = ("model",)

    @classmethod
    def from_recipe(cls, recipe: Recipe, saved: Path | None = None) -> Self:
        return cls(cls.Config(**recipe.trainer.options), {"model": nn.Linear(3, 4), "frozen": nn.Linear(3, 4)})

    def batch(self, step: int) -> dict[str, Tensor]:
        generator = Key((self.config.seed, step)).generator()
        size = self.config.batch_size
        x, y = torch.randn(size, 3, generator=generator), torch.randint(4, (size,), generator=generator)
        return {"x": x, "y": y}

    def counts(self, data: dict[str, Tensor]) -> Mapping[str, float]:
        return {"loss": len(data["y"])}

    def loss(self, data: dict[str, Tensor]) -> Mapping[str, Tensor]:
        return {"loss": cross_entropy(self.models["model"](data["x"]), data["y"], reduction="sum")}

    def evaluate(self) -> dict[str, float]:
        data = self.batch(10**6)
        return {"loss": float(self.loss(data)["loss"]) / len(data["y"])}

    def export(self, folder: Path) -> None:
        (folder / "notes.txt").write_text("nothing was fitted to the data\n")


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


class TrainsWithoutGradient(Guess):
    def loss(self, data: dict[str, Tensor]) -> Mapping[str, Tensor]:
        return {"loss": 0 * super().loss(data)["loss"]}


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


@pytest.mark.parametrize(
    ("broken", "caught_by", "also"),
    [
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
        (TrainsWithoutGradient, "gradient", set()),
        (TrainsAStranger, "roles", {"gradient"}),
        (EvaluatesAtRandom, "evaluate", set()),
        (TrainsWhileItEvaluates, "evaluate", set()),
        (LosesItsState, "state_dict", set()),
        (KeepsAnObject, "state_dict", set()),
        (ExportsNothing, "export", set()),
        (DescribesNothing, "config_json", set()),
    ],
)
def test_broken_trainer_is_caught(broken: type[Trainer], caught_by: str, also: set[str]) -> None:
    failures = examine(broken)
    assert caught_by in failures, failures
    assert failures.keys() - {caught_by} <= also, failures


def test_healthy_trainer_passes() -> None:
    assert examine(Guess) == {}


def test_trainer_without_an_example_is_a_failure_not_a_pass() -> None:
    class NoExample(Guess):
        examples = ()

    assert examine(NoExample).keys() == {"examples"}


def test_class_of_no_interface_is_refused() -> None:
    with pytest.raises(ContractError, match="Linear implements none of the five interfaces"):
        examine(nn.Linear)
