"""Checks of the paper's claims; `axon reproduce rmsnorm` runs them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from axon_core.papers import Outcome
from axon_core.text import read_text
from axon_rmsnorm.norm import RMSNorm

Normalise = Callable[[Tensor], Tensor]

_P = 0.0625  # the share pRMSNorm uses throughout the paper's experiments (Section 6)


def invariances() -> Outcome:
    """Check the rows LayerNorm, RMSNorm and pRMSNorm of Table 1: the changes that leave norm(Wx) the same."""
    generator = torch.Generator().manual_seed(0)
    w, x, shift = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((64, 32), (9, 32), (32,))
    )
    one_row, each_case = torch.ones(64, 1).double(), torch.linspace(0.5, 4, 9, dtype=torch.float32).double()[:, None]
    one_row[0] = 3
    changes = {  # in the order of the table's columns: (W', X')
        "weight matrix re-scaling": (3 * w, x),
        "weight matrix re-centering": (w + shift, x),
        "weight vector re-scaling": (one_row * w, x),
        "dataset re-scaling": (w, 3 * x),
        "dataset re-centering": (w, x + shift),
        "single case re-scaling": (w, each_case * x),
    }
    table = {"LayerNorm": "✓✓✗✓✗✓", "RMSNorm": "✓✗✗✓✗✓", "pRMSNorm": "✓✗✗✓✗✓"}
    norms: dict[str, Normalise] = {
        "LayerNorm": nn.LayerNorm(64, eps=0, dtype=torch.float64),
        "RMSNorm": _rms_norm(64).double(),
        "pRMSNorm": _rms_norm(64, partial=_P).double(),
    }
    kept: list[float] = []
    broken: list[float] = []
    for name, norm in norms.items():
        before = norm(x @ w.T)
        for (w2, x2), mark in zip(changes.values(), table[name], strict=True):
            difference = (norm(x2 @ w2.T) - before).abs().max().item()
            (kept if mark == "✓" else broken).append(difference)
    return Outcome(
        max(kept) < 1e-12 and min(broken) > 1e-2,
        f"largest change in the {len(kept)} invariant cells {max(kept):.0e}, "
        f"smallest in the {len(broken)} others {min(broken):.2f}",
    )


def implicit_learning_rate() -> Outcome:
    """Check Eq. 8–10: the effect of scaling inputs or weights by δ on the gradients of the gain and the weights."""
    worst = 0.0
    for partial in (1.0, _P):
        gain, weight = _gradients(1.0, 1.0, partial)
        for delta in (0.1, 7.0):
            for scaled, expected in (
                (_gradients(delta, 1.0, partial), (gain, weight / delta)),  # δW: Eq. 10
                (_gradients(1.0, delta, partial), (gain, weight)),  # δx
            ):
                for actual, wanted in zip(scaled, expected, strict=True):
                    worst = max(worst, ((actual - wanted).norm() / wanted.norm()).item())
    return Outcome(worst < 1e-12, f"largest relative difference {worst:.0e}")


def comparable_quality() -> Outcome:
    """Train a character model of four layers (Eq. 5) with each norm, everything else equal (Section 6.1, scaled)."""
    norms: dict[str, Callable[[], nn.Module]] = {
        "none": nn.Identity,
        "LayerNorm": lambda: nn.LayerNorm(_WIDTH),
        "RMSNorm": lambda: _rms_norm(_WIDTH, eps=1e-5),
        "pRMSNorm": lambda: _rms_norm(_WIDTH, eps=1e-5, partial=_P),
    }
    losses = {name: [_loss_after_training(norm, seed) for seed in range(3)] for name, norm in norms.items()}
    means = {name: sum(values) / len(values) for name, values in losses.items()}
    gaps = [ours - theirs for ours, theirs in zip(losses["RMSNorm"], losses["LayerNorm"], strict=True)]
    # Comparable: the difference from LayerNorm is small against LayerNorm's gain over no normalisation.
    gain = means["none"] - means["LayerNorm"]
    comparable = all(abs(means[name] - means["LayerNorm"]) < 0.25 * gain for name in ("RMSNorm", "pRMSNorm"))
    return Outcome(
        "direction" if comparable else False,
        f"held-out loss after {_STEPS} steps: {', '.join(f'{name} {mean:.3f}' for name, mean in means.items())} "
        "nats; RMSNorm minus LayerNorm",
        values=gaps,
        seeds=range(3),
    )


_STEPS, _BATCH, _CONTEXT, _WIDTH = 100, 128, 16, 128


class _Layer(nn.Module):
    """Eq. 5: y = f(norm(Wx) + b)."""

    def __init__(self, features: int, norm: nn.Module) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(features, _WIDTH, bias=False), norm
        self.bias = nn.Parameter(torch.zeros(_WIDTH))

    def forward(self, x: Float[Tensor, "b m"]) -> Float[Tensor, "b d"]:
        return torch.tanh(self.norm(self.linear(x)) + self.bias)


def _loss_after_training(norm: Callable[[], nn.Module], seed: int) -> float:
    """Learn to predict a character from the previous ones; return the loss on the last tenth of the text."""
    text = read_text()
    alphabet = {character: i for i, character in enumerate(sorted(set(text)))}
    windows = torch.tensor([alphabet[c] for c in text]).unfold(0, _CONTEXT + 1, 1)
    train, held_out = windows.tensor_split([len(windows) * 9 // 10])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [_Layer(32 * _CONTEXT if i == 0 else _WIDTH, norm()) for i in range(4)]
        model = nn.Sequential(nn.Embedding(len(alphabet), 32), nn.Flatten(), *layers, nn.Linear(_WIDTH, len(alphabet)))

    def loss(batch: Int[Tensor, "b n"]) -> Tensor:
        return cross_entropy(model(batch[:, :-1]), batch[:, -1])

    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        loss(train[torch.randint(len(train), (_BATCH,), generator=generator)]).backward()
        optimizer.step()
    with torch.no_grad():
        return loss(held_out[::5]).item()


def _gradients(weight_scale: float, input_scale: float, partial: float) -> tuple[Tensor, Tensor]:
    """Return the gradients of the gain and of W for a fixed linear loss of norm(Wx)."""
    generator = torch.Generator().manual_seed(0)
    w, x, loss = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((64, 32), (9, 32), (9, 64)))
    w = (weight_scale * w).requires_grad_()
    norm = _rms_norm(64, partial=partial).double()
    gain, weight = torch.autograd.grad((norm(input_scale * x @ w.T) * loss).sum(), (norm.weight, w))
    return gain, weight


def _rms_norm(dim: int, eps: float = 0.0, partial: float = 1.0) -> RMSNorm:
    return RMSNorm(RMSNorm.Config(dim=dim, eps=eps, partial=partial))
