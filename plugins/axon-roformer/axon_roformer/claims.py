"""Checks of the paper's claims; `axon reproduce roformer` runs them."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from axon_core.interfaces import Layout, Scope
from axon_core.nn import attend
from axon_core.papers import Outcome
from axon_core.text import read_text
from axon_roformer.rotary import Rotary, frequencies

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def relative_position() -> Outcome:
    """Check Eq. 16: shifting a query and a key together keeps their score; moving them apart changes it."""
    shifted = apart = 0.0
    layouts: tuple[Layout, ...] = ("half", "interleaved")
    for layout in layouts:
        rotary, (q, k) = _rotary(64, layout), _unit_vectors(2, 64)
        scores = torch.stack([_scores(rotary, q, k, start) for start in (0, 1, 10, 100, 1000)])
        shifted = max(shifted, (scores - scores[0]).abs().max().item())
        apart = max(apart, scores[0].std().item())
    # Angles are float32, with an error of 3e-5 at position 1000; the effect of the distance is far larger.
    return Outcome(
        shifted < 1e-4 and apart > 1e-2,
        f"shifting both by up to 1000 changes scores of unit vectors by at most {shifted:.0e}; "
        f"over distances 0 to 63 they spread by {apart:.2f}",
    )


def efficient_realization() -> Outcome:
    """Compare Eq. 34 with the matrix of Eq. 15, which must also be orthogonal."""
    d, positions = 32, torch.arange(200)
    angles = positions[:, None] * frequencies(d, 10000.0)
    blocks = torch.stack((angles.cos(), -angles.sin(), angles.sin(), angles.cos()), -1).unflatten(-1, (2, 2)).double()
    matrices = torch.stack([torch.block_diag(*row) for row in blocks])  # Eq. 15
    x = _unit_vectors(len(positions), d)
    fast = _rotary(d, "interleaved")(positions[None])(x[None, :, None])[0, :, 0]
    worst = (fast - torch.einsum("nij,nj->ni", matrices, x)).abs().max().item()
    skew = (matrices @ matrices.mT - torch.eye(d)).abs().max().item()
    return Outcome(max(worst, skew) < 1e-6, f"largest differences: Rx {worst:.0e}, RRᵀ from the identity {skew:.0e}")


def long_term_decay() -> Outcome:
    """Check that the bound of Eq. 37 on a score holds, and falls as the distance grows (Figure 2)."""
    d, rotary = 128, _rotary(128, "interleaved")
    distances = torch.arange(513)
    bounds = _partial_sums(frequencies(d, 10000.0), distances).abs().mean(-1)  # (1/(d/2)) Σ |S_i|
    q, k = _unit_vectors(2, d)
    products = torch.view_as_complex(q.view(-1, 2)) * torch.view_as_complex(k.view(-1, 2)).conj()
    steps = products.diff(append=products.new_zeros(1)).abs()  # |h_{i+1} − h_i|, with h_{d/2} = 0
    scores = rotary(distances[None])(q.expand(1, len(distances), 1, d))[0, :, 0] @ k
    holds = bool((scores.abs() <= steps.max() * bounds * (d / 2) + 1e-6).all())
    windows = [bounds[start : 2 * start].mean().item() for start in (1, 2, 4, 8, 16, 32, 64, 128, 256)]
    falls = all(near > far for near, far in pairwise(windows))

    def plot(axes: Axes) -> None:
        axes.plot(distances, bounds)
        axes.set(xlabel="relative distance", ylabel="relative upper bound", title="RoFormer, Figure 2 (d = 128)")

    return Outcome(
        holds and falls,
        f"the bound {'holds' if holds else 'is broken'}; its mean over distances 1, 2–3, 4–7, … 256–511 is "
        + ", ".join(f"{window:.1f}" for window in windows),
        plot=plot,
    )


def faster_convergence() -> Outcome:
    """Compare masked language models with rotary and sinusoidal positions, everything else equal (Section 4.2)."""
    gains: list[float] = []
    losses: list[tuple[float, float]] = []
    for seed in range(3):
        rotary, sinusoidal = (_masked_language_model_loss(rotary, seed) for rotary in (True, False))
        losses.append((rotary, sinusoidal))
        gains.append(sinusoidal - rotary)
    mean_rotary, mean_sinusoidal = (sum(column) / len(losses) for column in zip(*losses, strict=True))
    return Outcome(
        "direction" if min(gains) > 0 else False,
        f"held-out loss {mean_rotary:.3f} with rotary, {mean_sinusoidal:.3f} with sinusoidal positions after "
        f"{_STEPS} steps of a 2-layer character model; gain in nats",
        values=gains,
        seeds=range(3),
    )


_STEPS, _CONTEXT, _BATCH, _DIM, _HEADS = 100, 64, 8, 64, 4


class _Block(nn.Module):
    """A bidirectional pre-norm transformer block."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(_DIM), nn.LayerNorm(_DIM)])
        self.qkv = nn.Linear(_DIM, 3 * _DIM)
        self.out = nn.Linear(_DIM, _DIM)
        self.mlp = nn.Sequential(nn.Linear(_DIM, 4 * _DIM), nn.GELU(), nn.Linear(4 * _DIM, _DIM))

    def forward(self, x: Float[Tensor, "b n d"], scope: Scope, rotary: Rotary | None) -> Float[Tensor, "b n d"]:
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, _HEADS, -1)).unbind(2)
        q, k = scope.rotate(rotary, q, k)
        x = x + self.out(attend(q, k, v, scope).flatten(-2))
        return x + self.mlp(self.norms[1](x))


def _masked_language_model_loss(rotary: bool, seed: int) -> float:
    """Train on nine tenths of CPython's reference text, and return the loss on the masked tokens of the rest."""
    text = read_text()
    alphabet = {character: i for i, character in enumerate(sorted(set(text)))}
    windows = torch.tensor([alphabet[c] for c in text]).unfold(0, _CONTEXT, _CONTEXT)
    train, held_out = windows.tensor_split([len(windows) * 9 // 10])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        embedding, head = nn.Embedding(len(alphabet) + 1, _DIM), nn.Linear(_DIM, len(alphabet))
        blocks = nn.ModuleList([_Block(), _Block()])
    model = nn.ModuleList([embedding, head, blocks])
    positions = None if rotary else _sinusoids(_CONTEXT, _DIM)
    turn = _rotary(_DIM // _HEADS, "half") if rotary else None

    def loss(tokens: Int[Tensor, "b n"], masked: Bool[Tensor, "b n"]) -> Tensor:
        x = embedding(tokens.masked_fill(masked, len(alphabet)))
        x = x if positions is None else x + positions
        scope = Scope.over(x, causal=False)
        for block in blocks:
            x = block(x, scope, turn)
        return cross_entropy(head(x[masked]), tokens[masked])

    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(_STEPS):
        batch = train[torch.randint(len(train), (_BATCH,), generator=generator)]
        optimizer.zero_grad()
        loss(batch, torch.rand(batch.shape, generator=generator, dtype=torch.float32) < 0.15).backward()
        optimizer.step()
    with torch.no_grad():
        return loss(
            held_out[::2], torch.rand(held_out[::2].shape, generator=generator, dtype=torch.float32) < 0.15
        ).item()


def _sinusoids(n: int, d: int) -> Float[Tensor, "n d"]:
    """Return the sinusoidal positions of arXiv 1706.03762, Section 3.5."""
    angles = torch.arange(n)[:, None] * frequencies(d, 10000.0)
    return torch.cat((angles.sin(), angles.cos()), -1)


def _rotary(dim: int, layout: Layout) -> Rotary:
    return Rotary(Rotary.Config(dim=dim, layout=layout))


def _unit_vectors(n: int, d: int) -> Float[Tensor, "n d"]:
    generator = torch.Generator().manual_seed(0)
    return nn.functional.normalize(torch.randn(n, d, generator=generator, dtype=torch.float64), dim=-1)


def _scores(rotary: Rotary, q: Float[Tensor, " d"], k: Float[Tensor, " d"], start: int) -> Float[Tensor, "n m"]:
    """Return the scores of one query and one key at each pair of 64 positions from `start` on."""
    rotation = rotary(torch.arange(start, start + 64)[None])
    queries, keys = (rotation(x.expand(1, 64, 1, -1))[0, :, 0] for x in (q, k))
    return queries @ keys.T


def _partial_sums(theta: Float[Tensor, " r2"], distances: Int[Tensor, " s"]) -> Complex[Tensor, "s r2"]:
    """Return S_1 … S_{d/2} of Section 3.4.3 for each distance."""
    angles = distances[:, None].double() * theta.double()
    return torch.polar(torch.ones_like(angles), angles).cumsum(-1)
