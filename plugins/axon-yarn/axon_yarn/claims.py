"""Checks of the paper's claims; `axon reproduce yarn` runs them."""

from __future__ import annotations

import copy
from functools import cache
from math import log, sqrt, tau

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from axon_core.interfaces import RotaryEmbedding, Scope
from axon_core.nn import attend
from axon_core.papers import Outcome
from axon_core.text import read_text
from axon_roformer import LinearRotary, Rotary
from axon_yarn.rotary import YarnRotary

_CONTEXT, _FACTOR, _BATCH, _DIM, _HEADS = 32, 8, 16, 64, 2
_STEPS, _FINE_TUNING = 250, 20
_SEEDS = (0, 1)


def by_parts() -> Outcome:
    """Compare the frequencies for Llama 2's context, 16 times extended, with the trained ones."""
    dim, context, factor = 128, 4096, 16.0
    trained = Rotary(Rotary.Config(dim=dim, context=context)).frequencies.double()
    config = YarnRotary.Config(dim=dim, context=context, factor=factor)
    ratio = YarnRotary(config).frequencies.double() / trained
    turns = context * trained / tau
    fast, slow = ratio[turns > 33], ratio[turns < 0.9]  # the code's ramp ends at whole pairs
    between = ratio[(turns <= 33) & (turns >= 0.9)]
    worst = max((fast - 1).abs().max().item(), (slow - 1 / factor).abs().max().item())
    falls = bool((between.diff() <= 0).all()) and 1 / factor <= between.min().item() <= between.max().item() <= 1
    found = f"of 64 pairs {len(fast)} stay, {len(slow)} are divided by 16, to within {worst:.0e}, and {len(between)}"
    return Outcome(worst < 1e-6 and falls, f"{found} lie between, falling")


def temperature() -> Outcome:
    """Compare attention over the rotated features with a softmax at temperature t over features rotated alone."""
    factor, dim, n = 16.0, 32, 40
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, n, 1, dim, generator=generator, dtype=torch.float64)
    sharp = _yarn(dim, factor)(torch.arange(n)[None])
    plain = _yarn(dim, factor, attention_factor=1.0)(torch.arange(n)[None])
    weights = [torch.einsum("bnhd,bmhd->nm", turn(q), turn(k)) / sqrt(dim) for turn in (sharp, plain)]
    t = (0.1 * log(factor) + 1) ** -2
    difference = (weights[0].softmax(-1) - (weights[1] / t).softmax(-1)).abs().max().item()
    return Outcome(difference < 1e-6, f"largest difference of attention weights {difference:.0e} at t = {t:.3f}")


def less_fine_tuning() -> Outcome:
    """Extend a small language model to 8 times its context, and fine-tune it for some steps, with each method."""
    gains: list[float] = []
    losses: dict[str, list[float]] = {"untouched": [], "linear": [], "yarn": []}
    for seed in _SEEDS:
        for name, rotary in _methods().items():
            model = copy.deepcopy(_pretrained(seed))
            model.rotary = rotary
            steps = 0 if name == "untouched" else _FINE_TUNING
            losses[name].append(_held_out(_train(model, steps, _FACTOR * _CONTEXT, 1e-3, seed + 100)))
        gains.append(losses["linear"][-1] - losses["yarn"][-1])
    means = {name: sum(found) / len(found) for name, found in losses.items()}
    return Outcome(
        "direction" if min(gains) > 0 else False,
        f"a model of {_CONTEXT} tokens reads {_FACTOR * _CONTEXT} with loss {means['untouched']:.3f}; after "
        f"{_FINE_TUNING} steps {means['linear']:.3f} with position interpolation and {means['yarn']:.3f} with YaRN; "
        "gain in nats",
        values=gains,
        seeds=_SEEDS,
    )


class _Reader(nn.Module):
    """A causal language model of two layers of attention and feed-forward, over characters."""

    def __init__(self, vocabulary: int, rotary: RotaryEmbedding) -> None:
        super().__init__()
        self.rotary = rotary
        self.embedding, self.head = nn.Embedding(vocabulary, _DIM), nn.Linear(_DIM, vocabulary)
        self.norms = nn.ModuleList(nn.LayerNorm(_DIM) for _ in range(4))
        self.projections = nn.ModuleList(nn.Linear(_DIM, 3 * _DIM) for _ in range(2))
        self.outs = nn.ModuleList(nn.Linear(_DIM, _DIM) for _ in range(2))
        self.feed_forwards = nn.ModuleList(
            nn.Sequential(nn.Linear(_DIM, 4 * _DIM), nn.GELU(), nn.Linear(4 * _DIM, _DIM)) for _ in range(2)
        )

    def forward(self, tokens: Int[Tensor, "b n"]) -> Float[Tensor, "b n v"]:
        scope, x = Scope.over(tokens), self.embedding(tokens)
        for layer, (projection, out, feed_forward) in enumerate(
            zip(self.projections, self.outs, self.feed_forwards, strict=True)
        ):
            q, k, v = projection(self.norms[2 * layer](x)).unflatten(-1, (3, _HEADS, -1)).unbind(2)
            q, k = scope.rotate(self.rotary, q, k)
            x = x + out(attend(q, k, v, scope).flatten(-2))
            x = x + feed_forward(self.norms[2 * layer + 1](x))
        return self.head(x)


def _methods() -> dict[str, RotaryEmbedding]:
    dim, context = _DIM // _HEADS, _CONTEXT
    return {
        "untouched": Rotary(Rotary.Config(dim=dim, context=context)),
        "linear": LinearRotary(LinearRotary.Config(dim=dim, context=context, factor=_FACTOR)),
        "yarn": YarnRotary(YarnRotary.Config(dim=dim, context=context, factor=_FACTOR)),
    }


@cache
def _text() -> tuple[Int[Tensor, " n"], int]:
    text = read_text()
    alphabet = {character: i for i, character in enumerate(sorted(set(text)))}
    return torch.tensor([alphabet[character] for character in text]), len(alphabet)


@cache
def _pretrained(seed: int) -> _Reader:
    """Return a model trained on short windows; callers copy it before they change it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _Reader(_text()[1], _methods()["untouched"])
    return _train(model, _STEPS, _CONTEXT, 3e-3, seed)


def _train(model: _Reader, steps: int, length: int, rate: float, seed: int) -> _Reader:
    text, generator = _text()[0], torch.Generator().manual_seed(seed)
    windows = text[: len(text) * 9 // 10].unfold(0, length + 1, length + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for _ in range(steps):
        batch = windows[torch.randint(len(windows), (_BATCH * _CONTEXT * 8 // length,), generator=generator)]
        optimizer.zero_grad()
        _loss(model, batch).backward()
        optimizer.step()
    return model


@torch.no_grad()
def _held_out(model: _Reader) -> float:
    text = _text()[0]
    length = _FACTOR * _CONTEXT
    return _loss(model, text[len(text) * 9 // 10 :].unfold(0, length + 1, length + 1)[::2]).item()


def _loss(model: _Reader, windows: Int[Tensor, "b n"]) -> Tensor:
    return cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


def _yarn(dim: int, factor: float, attention_factor: float | None = None) -> YarnRotary:
    return YarnRotary(YarnRotary.Config(dim=dim, context=32, factor=factor, attention_factor=attention_factor))
