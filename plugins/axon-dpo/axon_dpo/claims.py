"""The claims of the paper's card, checked on problems whose optimum is known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from axon_core import MODELS
from axon_core.alignment import Sequences, completion_logprobs
from axon_core.interfaces import CausalLM
from axon_core.papers import Outcome
from axon_dpo.losses import IPO, PreferenceLoss, Robust, Sigmoid, conservative
from axon_dpo.optimum import expected_loss, optimal_policy, preferences, tabular_policy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_REFERENCE = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
_REWARDS = torch.arange(4, dtype=torch.float64)
_SEEDS = (0, 1, 2)


def optimum() -> Outcome:
    """Minimise the expected loss of four texts by its exact gradient, for two β, and compare with Eq. 4."""
    errors = [
        (_tabular(Sigmoid(Sigmoid.Config(beta=beta))) - optimal_policy(_REFERENCE, _REWARDS, beta)).abs().max().item()
        for beta in (1.0, 0.5)
    ]
    return Outcome(max(errors) < 1e-6, f"largest difference of a probability, β = 1 and 0.5: {max(errors):.1e}")


def sequences() -> Outcome:
    """Train an X-Llama on all pairs of the 125 sequences of three tokens out of five; compare with Eq. 4."""
    found = [total_variation(*train_on_all_sequences(seed)) for seed in _SEEDS]
    return Outcome(
        max(found) < 0.01, "total variation distance of 125 sequences' probabilities from π*:", found, _SEEDS
    )


def update() -> Outcome:
    """Compare the loss's gradient with the paper's formula at random log-probabilities."""
    generator = torch.Generator().manual_seed(0)
    logps, reference = torch.randn(2, 1000, 2, generator=generator, dtype=torch.float64) * 5
    logps.requires_grad_()
    beta = 0.3
    Sigmoid(Sigmoid.Config(beta=beta))(logps - reference, torch.ones(1000, 2).long()).sum().backward()
    chosen, rejected = (beta * (logps - reference)).detach().unbind(1)
    weight = beta * (rejected - chosen).sigmoid()
    assert logps.grad is not None
    worst = (logps.grad - torch.stack((-weight, weight), 1)).abs().max().item()
    return Outcome(worst < 1e-12, f"largest difference of 2,000 derivatives: {worst:.1e}")


def flipped_labels() -> Outcome:
    """Flip a fifth of the choices among four texts, and compare the optima of both losses with the true optimum."""
    best = optimal_policy(_REFERENCE, _REWARDS, 1.0)
    found = {
        "robust": _tabular(Robust(Robust.Config(beta=1.0, flip_rate=0.2)), 0.2),
        "plain": _tabular(Sigmoid(Sigmoid.Config(beta=1.0)), 0.2),
    }
    robust, plain = (total_variation(policy, best) for policy in found.values())
    return Outcome(
        robust < 1e-6 and plain > 0.1,
        f"20 % flipped: total variation from π* {robust:.1e} with the robust loss, {plain:.3f} with the plain one",
        plot=lambda axes: _bars(axes, {"π_ref": _REFERENCE, "π*": best, **found}),
    )


def identity_mapping() -> Outcome:
    """Minimise IPO's expected loss for four texts; compare with the least squares solution, and with Eq. 4."""
    found = _tabular(IPO(IPO.Config(beta=1.0, length_normalised=False)))
    solution = (_REFERENCE.log() + (preferences(_REWARDS) - 0.5).mean(1)).softmax(0)
    worst, away = (found - solution).abs().max().item(), total_variation(found, optimal_policy(_REFERENCE, _REWARDS, 1))
    shown = ", ".join(f"{p:.4f}" for p in found)
    return Outcome(
        worst < 1e-6 and away > 0.1, f"({shown}), {worst:.1e} from least squares, total variation {away:.3f} from π*"
    )


def smoothed_labels() -> Outcome:
    """Find the minimum of the conservative loss if every choice is the same, ε = 0.1."""
    delta, beta = torch.linspace(0, 100, 1_000_001, dtype=torch.float64), 0.5
    least = beta * delta[conservative(delta, beta, 0.1).argmin()].item()
    return Outcome(abs(least - math.log(9)) < 1e-4, f"βΔ = {least:.4f}; log 9 = {math.log(9):.4f}")


def train_on_all_sequences(
    seed: int, size: int = 5, length: int = 3, attention: Mapping[str, object] = MappingProxyType({"type": "GQA"})
) -> tuple[Float[Tensor, " y"], Float[Tensor, " y"]]:
    """Minimise the expected loss of a small X-Llama over all sequences of tokens; return its policy and π*, β = 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MODELS["xllama"].build(
            vocab_size=size, context=length + 2, dim=32, n_layers=2, n_heads=4, attention=attention
        )
    assert isinstance(model, CausalLM)
    model.double()
    # Two different tokens: after a single one, the model could not tell how long a run of that token is.
    rows = Sequences.of(([0, 1], text) for text in product(range(size), repeat=length))
    rewards = torch.randn(len(rows.tokens), generator=generator, dtype=torch.float64)
    with torch.no_grad():
        reference = completion_logprobs(model, rows)
    chosen, loss = preferences(rewards), Sigmoid(Sigmoid.Config(beta=1.0))
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=150, history_size=50, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = expected_loss(completion_logprobs(model, rows), reference, chosen, loss)
        value.backward()
        return value

    optimizer.step(closure)
    with torch.no_grad():
        policy = completion_logprobs(model, rows).exp()
    return policy, optimal_policy(reference.exp(), rewards, 1.0)


def total_variation(p: Float[Tensor, " y"], q: Float[Tensor, " y"]) -> float:
    """Return ½ Σ |p − q|."""
    return 0.5 * (p - q).abs().sum().item()


def _tabular(loss: PreferenceLoss, flip_rate: float = 0.0) -> Float[Tensor, " y"]:
    return tabular_policy(_REFERENCE, preferences(_REWARDS, flip_rate), loss)


def _bars(axes: Axes, policies: Mapping[str, Float[Tensor, " y"]]) -> None:
    for i, (name, policy) in enumerate(policies.items()):
        axes.bar([text + 0.2 * i for text in range(len(policy))], policy.tolist(), width=0.2, label=name)
    axes.set(xlabel="text", ylabel="probability", xticks=[])
    axes.legend()
