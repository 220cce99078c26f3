"""A tiny language model and its trainer, for tests of the loop: fast, with dropout, embeddings and matrices."""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from axon_core import MODELS
from axon_core.config import at, validate
from axon_core.nn import Dropout
from axon_core.randomness import Key
from axon_core.text.corpus import TextData, Windows
from axon_core.text.tokenizer import Tokenizer
from axon_core.training.loop import fit
from axon_core.training.trainer import Trainer

TEXT = "the quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs. " * 30


class Bigram(nn.Module):
    def __init__(self, vocab: int, dim: int, dropout: float, seed: int = 0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, dim)
        self.hidden = nn.Linear(dim, dim)
        self.dropout = Dropout(dropout)
        self.head = nn.Linear(dim, vocab, bias=False)
        for number, parameter in enumerate(self.parameters()):
            parameter.data = torch.randn(parameter.shape, generator=Key((seed, number)).generator()) / math.sqrt(dim)

    def hidden_matrices(self) -> list[torch.Tensor]:
        return [self.hidden.weight]

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(torch.tanh(self.hidden(self.embedding(tokens)))))


class Toy(Trainer):
    class Config(Trainer.Config):
        context: int = 8
        """Tokens in a window."""
        dim: int = 16
        """Features of a token."""
        dropout: float = 0.0
        """Of the hidden features."""
        spoil_at: int | None = None
        """The step whose loss is not finite."""

    unit = "tokens"
    trainable = ("model",)

    def __init__(self, config: Config, data: TextData) -> None:
        super().__init__(config, {"model": Bigram(data.tokenizer.vocab_size, config.dim, config.dropout, config.seed)})
        self.data = data
        self.calls = 0
        self._windows = Windows(data.train, config.context, Key((config.seed, "windows")))

    @classmethod
    def make(cls, **values: object) -> Toy:
        values = {"steps": 12, "batch_size": 8, **values}
        return cls(validate(cls.Config, values), TextData.of(TEXT))

    @classmethod
    def from_recipe(cls, recipe, saved=None):
        with at("trainer"):
            config = validate(cls.Config, recipe.trainer.options)
        if recipe.model:
            with at("model"):
                MODELS.build(recipe.model)
        with at("data"):
            return cls(config, TextData.load(recipe.data, Tokenizer.load(saved) if saved else None))

    def batch(self, step):
        tokens = self._windows.batch(step, self.config.batch_size)
        return {"tokens": tokens, "step": torch.full((len(tokens),), step)}

    def counts(self, data):
        return {"loss": data["tokens"][:, 1:].numel()}

    def loss(self, data):
        tokens = data["tokens"]
        logits = self.models["model"](tokens[:, :-1])
        loss = cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
        return {"loss": loss * (math.nan if self.config.spoil_at == data["step"][0] else 1.0)}

    def evaluate(self):
        self.calls += 1
        total = 0.0
        for tokens in self.data.held_out_batches(self.config.context, 64):
            logits = self.models["model"](tokens[:, :-1])
            total += cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum").item()
        count = len(self.data.held_out) - 1
        bits = total / math.log(2) / self.data.held_out_bytes
        return {"loss": total / count, "bits_per_byte": bits, "tokens": count}

    def sample(self):
        return self.data.tokenizer.decode(self.models["model"](self.data.held_out[:20].long()).argmax(-1).tolist())

    def export(self, folder: Path):
        self.data.tokenizer.save(folder)
        torch.save(self.models["model"].state_dict(), folder / "weights.pt")

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]

    def digest(self) -> int:
        """Checksum of the weights, bit for bit."""
        weights = self.models["model"].state_dict()
        return zlib.crc32(b"".join(weights[name].numpy().tobytes() for name in sorted(weights)))


def digest_after(**values) -> int:
    """Checksum of the weights of a training with these settings."""
    trainer = Toy.make(**values)
    fit(trainer)
    return trainer.digest()
