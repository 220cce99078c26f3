"""The conformance kit catches broken models: each by the check that is meant for its mistake."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import pytest
import torch
from caught import Row, assert_caught
from healthy_parts import Rotating, Tiny
from torch import Tensor, nn

from axon_core.interfaces.cache import Cache
from axon_core.interfaces.model import Model
from axon_core.interfaces.scope import Scope
from axon_core.interfaces.tensor_split import TensorSplit
from axon_core.testing.model import CAUSAL_LM


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


class RotatesRowsWhole(Rotating):
    """Looks at the whole row's length, not the document's."""

    def scope(self, tokens: Tensor, valid: Tensor | None, documents: Tensor | None) -> Scope:
        scope = super().scope(tokens, valid, documents)
        scope.rotation = lambda rotary, dtype: rotary(scope.positions).to(dtype)
        return scope


class IgnoresCache(Tiny):
    def features(self, tokens: Tensor, *, cache: Cache | None = None, **more: Any) -> Tensor:
        return super().features(tokens, **more)


class LeavesPaddingOutOfTheCache(Tiny):
    def features(self, tokens: Tensor, *, valid: Tensor | None = None, **more: Any) -> Tensor:
        if more.get("cache") is not None and valid is not None:
            tokens, valid = tokens.masked_fill(~valid, 0), None
        return super().features(tokens, valid=valid, **more)


class ForgetsTheHorizon(Rotating):
    def horizon(self) -> int | None:
        return None


class ReturnsWholeRows(Rotating):
    def asked(self, x: Tensor, n: int) -> Tensor:
        return x


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


class AddsAFloat32Table(Tiny):
    def embed(self, tokens: Tensor, valid: Tensor | None) -> Tensor:
        return super().embed(tokens, valid) + torch.linspace(0, 1, self.config.dim)


class DescribesNothing(Tiny):
    class Config(Tiny.Config):
        scale: float = 1.0


class DetachesItsFirstToken(Tiny):
    def embed(self, tokens: Tensor, valid: Tensor | None) -> Tensor:
        x = super().embed(tokens, valid)
        return torch.cat((x[:, :1].detach(), x[:, 1:]), 1)


class Halved(nn.Module):
    """A feed-forward whose second half of hidden features gates the first: they are in no process together."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.up(x).chunk(2, -1)
        return self.down(value * torch.tanh(gate))

    def tensor_split(self) -> TensorSplit:
        return TensorSplit(columns=["up"], rows=["down"], units=self.down.in_features, unit="hidden features")


class DividesHalves(Tiny):
    def __init__(self, config: Tiny.Config) -> None:
        super().__init__(config)
        self.feed_forward = Halved(config.dim)

    def features(self, tokens: Tensor, **more: Any) -> Tensor:
        x = super().features(tokens, **more)
        return x + self.feed_forward(x)


ROWS: list[Row] = [
    (DividesHalves, "divided_parts", set()),
    (ScoresTheLastPosition, "shape", {c.name for c in CAUSAL_LM.checks}),
    (ScalesLogitsInForward, "shape", {"padding", "bfloat16", "cached", "cached_ragged", "caches_apart"}),
    (AddsAFloat32Table, "bfloat16", set()),
    (DescribesNothing, "config_json", set()),
    (DetachesItsFirstToken, "gradient", set()),
    (SeesTheFuture, "causal", {"cached", "cached_ragged", "caches_apart", "bfloat16"}),
    (SeesTheFutureInTraining, "causal", set()),
    (EmbedsPadding, "padding", {"cached_ragged"}),
    (IgnoresDocuments, "documents", set()),
    (RotatesRowsWhole, "documents", set()),
    (IgnoresCache, "cached", {"cached_ragged", "caches_apart", "bfloat16"}),
    (LeavesPaddingOutOfTheCache, "cached_ragged", set()),
    (ForgetsTheHorizon, "horizon", set()),
    (ReturnsWholeRows, "horizon", set()),
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
]


@pytest.mark.parametrize(("broken", "caught_by", "also"), ROWS)
def test_broken_model_is_caught(broken: type[Any], caught_by: str, also: Set[str]) -> None:
    assert_caught(broken, caught_by, also)
