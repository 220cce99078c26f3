"""The ablations of the paper's Section 3.3, scaled down to a one-layer model of characters that trains in seconds."""

from __future__ import annotations

import pydoc_data.topics
from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from axon_core.interfaces import Scope
from axon_gqa.attention import GroupedQueryAttention
from axon_gqa.conversion import Pool, mean_pool

STEPS, BATCH, CONTEXT = 300, 16, 32
DIM, HEADS = 64, 8


class Tiny(nn.Module):
    """A one-layer language model of ASCII characters: `(b n) -> (b n 128)`."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(128, DIM), nn.Embedding(CONTEXT, DIM)
        self.attention_norm, self.norm = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.attention = GroupedQueryAttention(GroupedQueryAttention.Config(dim=DIM, n_heads=HEADS, n_kv_heads=HEADS))
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(DIM), nn.Linear(DIM, 4 * DIM), nn.GELU(), nn.Linear(4 * DIM, DIM)
        )
        self.head = nn.Linear(DIM, 128)

    def forward(self, tokens: Int[Tensor, "b n"]) -> Float[Tensor, "b n v"]:
        """Return the scores of each position's next character."""
        x = 0.3 * (self.embedding(tokens) + self.positions.weight)
        x = x + self.attention(self.attention_norm(x), Scope.over(tokens))
        x = x + self.feed_forward(x)
        return self.head(self.norm(x))


def first_head(rows: Float[Tensor, "rows ..."], n_heads: int, n_kv_heads: int) -> Float[Tensor, "pooled ..."]:
    """Keep the first head of each group (arXiv 2305.13245, Figure 4, 'First')."""
    return rows.unflatten(0, (n_kv_heads, n_heads // n_kv_heads, -1))[:, 0].flatten(0, 1)


def random_heads(generator: torch.Generator) -> Pool:
    """Return a `Pool` that initialises the heads again, like a new linear layer's (Figure 4, 'Random')."""

    def fresh(rows: Float[Tensor, "rows ..."], n_heads: int, n_kv_heads: int) -> Float[Tensor, "pooled ..."]:
        kept = first_head(rows, n_heads, n_kv_heads)
        bound = rows.shape[-1] ** -0.5
        return torch.empty_like(kept).uniform_(-bound, bound, generator=generator)

    return fresh


CONVERSIONS: dict[str, Callable[[int], Pool]] = {
    "mean": lambda seed: mean_pool,
    "first": lambda seed: first_head,
    "random": lambda seed: random_heads(torch.Generator().manual_seed(seed)),
}
"""The three ways of Figure 4, each given a seed."""


@cache
def pretrained(seed: int) -> Tiny:
    """Return a multi-head model trained for `STEPS` steps; callers copy it before they change it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Tiny()
    return train(model, STEPS, 3e-3, seed)


def train(model: Tiny, steps: int, peak: float, seed: int) -> Tiny:
    """Train `model` in place with AdamW, the learning rate falling linearly from `peak` to 0."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, fused=True)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = peak * (1 - step / steps)
        optimizer.zero_grad()
        _loss(model, _training_text(), BATCH, generator).backward()
        optimizer.step()
    return model


@torch.no_grad()
def held_out_loss(model: Tiny) -> float:
    """Return the loss in nats per character, on 512 passages of text the model was not trained on."""
    return _loss(model, _held_out_text(), 512, torch.Generator().manual_seed(1)).item()


def _loss(model: Tiny, text: Int[Tensor, " t"], batch: int, generator: torch.Generator) -> Tensor:
    starts = torch.randint(len(text) - CONTEXT, (batch, 1), generator=generator)
    passages = text[starts + torch.arange(CONTEXT + 1)]
    return cross_entropy(model(passages[:, :-1]).flatten(0, 1), passages[:, 1:].flatten())


@cache
def _text() -> Int[Tensor, " t"]:
    english = "\n".join(pydoc_data.topics.topics.values())  # the reference text that ships with every CPython
    return torch.tensor(list(english.encode("ascii", "ignore")))


def _training_text() -> Int[Tensor, " t"]:
    return _text()[: len(_text()) * 9 // 10]


def _held_out_text() -> Int[Tensor, " t"]:
    return _text()[len(_text()) * 9 // 10 :]
