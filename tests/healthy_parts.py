"""Parts without a mistake, one for each interface; the tests of the conformance kit break one step of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from axon_core import ROTARY_EMBEDDINGS
from axon_core.interfaces.attention import Attention
from axon_core.interfaces.cache import Cache, CacheStep, LayerCache, StateSpec
from axon_core.interfaces.model import CausalLM
from axon_core.interfaces.norm import Norm
from axon_core.interfaces.rotary_embedding import RotaryEmbedding, Rotation
from axon_core.interfaces.scope import Scope
from axon_core.nn.attention import QKV, attend
from axon_core.randomness import Key
from axon_core.registry.parts import part
from axon_core.registry.spec import Spec
from axon_core.training.recipe import Recipe
from axon_core.training.trainer import Trainer


class Healthy(Attention):
    """Multi-head attention."""

    def __init__(self, config: Attention.Config, rotary: RotaryEmbedding | None = None) -> None:
        super().__init__(config, rotary)
        self.qkv = QKV(config.dim, config.n_heads, config.n_heads, config.head_dim)
        self.out = nn.Linear(config.n_heads * config.head_dim, config.dim, bias=False)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        scope: Scope,
        *,
        memory: Float[Tensor, "b m d"] | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "b n d"]:
        if memory is None:
            q, k, v = self.qkv(x)
            q, k = self.rotate(scope, q, k)
            k, v = (k, v) if cache is None else self.keep(cache, k, v)
        else:
            q = self.qkv.query(x)
            k, v = self.qkv.key_value(memory) if cache is None else self.read(cache, memory)
        return self.out(self.mix(q, k, v, scope).flatten(-2))

    def rotate(self, scope: Scope, q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
        return scope.rotate(self.rotary, q, k)

    def keep(self, cache: LayerCache, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return cache.append(k=k, v=v)

    def read(self, cache: LayerCache, memory: Tensor) -> tuple[Tensor, ...]:
        return cache.once(lambda: self.qkv.key_value(memory))

    def mix(self, q: Tensor, k: Tensor, v: Tensor, scope: Scope) -> Tensor:
        return attend(q, k, v, scope)

    def state(self) -> Mapping[str, StateSpec]:
        per_token = StateSpec((self.config.n_heads, self.config.head_dim))
        return {"k": per_token, "v": per_token}


class Plain(RotaryEmbedding):
    """A rotary embedding."""

    def forward(self, positions: Tensor) -> Rotation:
        return Rotation.of(positions.unsqueeze(-1) * self.frequencies(positions), self.config.layout)

    def frequencies(self, positions: Tensor, base: float | Tensor = 10000.0) -> Tensor:
        return base ** (-torch.arange(0, self.config.dim, 2) / self.config.dim)


class RootMeanSquare(Norm):
    """A norm."""

    def __init__(self, config: Norm.Config) -> None:
        super().__init__(config)
        self.weight = nn.Parameter(torch.ones(config.dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.double() if x.dtype == torch.float64 else x.float()
        return (wide * self.scale(wide)).to(x.dtype) * self.weight.to(x.dtype)

    def scale(self, x: Tensor) -> Tensor:
        return (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


class Tiny(CausalLM):
    """One layer of attention."""

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
        state = StateSpec((2, self.config.dim // 2))
        dtype = self.head.weight.dtype
        return Cache([{"k": state, "v": state}], batch, capacity, dtype=dtype, device="cpu")

    def hidden_matrices(self) -> list[nn.Parameter]:
        return [self.qkv.projection.weight]


class Rotating(Tiny):
    """One layer of attention with a rotary embedding."""

    class Config(Tiny.Config):
        rotary: Spec = Spec(type="plain")
        """The rotary embedding."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        with ROTARY_EMBEDDINGS.override(plain=Plain):
            self.rotary = part(config, "rotary", ROTARY_EMBEDDINGS, dim=config.dim // 2, context=config.context)

    def features(
        self,
        tokens: Tensor,
        *,
        valid: Tensor | None = None,
        documents: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        new = tokens if valid is None else tokens.masked_fill(~valid, 0)
        step = CacheStep(new, self.scope(new, valid, documents), [None]) if cache is None else cache.extend(new, valid)
        x = self.embedding(step.tokens)
        q, k, v = self.qkv(x)
        q, k = step.scope.rotate(self.rotary, q, k)
        for layer in step.layers:
            k, v = (k, v) if layer is None else layer.append(k=k, v=v)
        return self.asked(x + attend(q, k, v, step.scope).flatten(-2), tokens.shape[1])

    def asked(self, x: Tensor, n: int) -> Tensor:
        return x[:, -n:]

    def new_cache(self, batch: int, capacity: int) -> Cache:
        made, dtype = super().new_cache(batch, capacity), self.head.weight.dtype
        states = [layer.states for layer in made.layers]
        return Cache(states, batch, capacity, dtype=dtype, device="cpu", horizon=self.horizon())

    def horizon(self) -> int | None:
        return self.rotary.constant_until


class Guess(Trainer):
    """Learns to score random labels."""

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


class Unmoved(Guess):
    """With a statistic that is zero but for rounding, which differs with the number of examples."""

    def counts(self, data: dict[str, Tensor]) -> Mapping[str, float]:
        return {**super().counts(data), "kl": len(data["y"])}

    def loss(self, data: dict[str, Tensor]) -> Mapping[str, Tensor]:
        return {**super().loss(data), "kl": torch.tensor(1e-14 * len(data["y"]) ** 2)}
