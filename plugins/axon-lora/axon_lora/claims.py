"""Checks of the paper's claims; `axon reproduce lora` runs them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from statistics import mean, stdev

import torch
from torch.nn.functional import cross_entropy

from axon_core import MODELS, Key, validate
from axon_core.checkpoint import weightless
from axon_core.interfaces import CausalLM, Model
from axon_core.papers import Outcome
from axon_core.text import read_text
from axon_lora.adapter import AdapterSection
from axon_lora.low_rank import LowRank

_SIZES = {"context": 64, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "attention": "MHA"}
_SUMS = Path(__file__).with_name("example") / "sums.txt"
_ROWS, _STEPS, _SEEDS = 16, 150, (0, 1, 2)


def merged() -> Outcome:
    """Compare a model with updates drawn at random with one whose weights they were added to, in float64."""
    torch.manual_seed(0)
    model = MODELS.build({"type": "xllama", **_SIZES}, vocab_size=61).double()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    section = _section(rank=4)
    section.attach(model)
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in own.values():
            parameter.normal_(0, 0.1)
    tokens = torch.randint(61, (2, 64))
    adapted = model.double()(tokens)
    other = MODELS.build({"type": "xllama", **_SIZES}, vocab_size=61).double()
    change = section.weight_change(other, {name: p.detach() for name, p in own.items()})
    other.load_state_dict({name: change(name, tensor) for name, tensor in before.items()})
    difference = (other(tokens) - adapted).abs().max().item() / adapted.abs().max().item()
    return Outcome(difference < 1e-12, f"largest difference {difference:.0e}, with as many weights as before")


def begins_as_base() -> Outcome:
    """Compare a model before and after updates are attached, bit for bit; then look at the first gradients."""
    torch.manual_seed(0)
    model, tokens = MODELS.build({"type": "xllama", **_SIZES}, vocab_size=61), torch.randint(61, (2, 64))
    before = model(tokens)
    _section(rank=4).attach(model)
    after = model(tokens)
    after.square().sum().backward()
    parts = [part for part in model.modules() if isinstance(part, LowRank)]
    of_b = all(b.grad is not None and bool(b.grad.any()) for part in parts for b in part.b)
    of_a = any(part.a.grad is not None and bool(part.a.grad.any()) for part in parts)
    same = torch.equal(before, after)
    return Outcome(same and of_b and not of_a, f"{'the same' if same else 'other'} bits; B has a gradient, A has none")


def parameters() -> Outcome:
    """Count the updates of a model of GPT-3's sizes (96 layers of 12,288 features) in the ways of Table 5."""
    found = {}
    for name, targets, rank in (("q", ("q",), 8), ("q, v", ("q", "v"), 4), ("q, k, v, o", ("q", "k", "v", "out"), 2)):
        with weightless():
            model = MODELS.build(
                {"type": "xllama", "dim": 12288, "n_layers": 96, "n_heads": 96, "context": 2048, "attention": "MHA"},
                vocab_size=50257,
            )
            _section(rank=rank, targets=targets).attach(model)
        found[f"{name} at r = {rank}"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    fits = all(int(number / 1e6) == 18 for number in found.values())
    return Outcome(fits, "; ".join(f"{name}: {number:,}" for name, number in found.items()))


def which_matrices() -> Outcome:
    """Adapt a small model of characters to sums in words, with as many parameters in one kind of matrix or in two."""
    losses = {
        name: [_adapted(seed, targets, rank) for seed in _SEEDS]
        for name, targets, rank in (("q", ("q",), 8), ("q, v", ("q", "v"), 4))
    }
    gains = [one - two for one, two in zip(*losses.values(), strict=True)]
    told = ", ".join(f"{mean(values):.3f} for {name}" for name, values in losses.items())
    error = stdev(gains) / len(gains) ** 0.5
    found = f"loss {told}: a gain in nats, whose standard error is {error:.3f}, of"
    return Outcome(mean(gains) > 2 * error, found, gains, _SEEDS)


def _section(**options: object) -> AdapterSection:
    return AdapterSection(validate(AdapterSection.Config, options))


@cache
def _base() -> tuple[dict[str, torch.Tensor], str]:
    """Return the weights of a model that was trained on the English text inside Python, and its characters."""
    text, sums = read_text(), _SUMS.read_text(encoding="utf-8-sig")
    characters = "".join(sorted({*text, *sums}))
    with Key((0, "base")).seeded("cpu"):
        model = MODELS.build({"type": "xllama", **_SIZES}, vocab_size=len(characters))
    _train(model, _encoded(text, characters), 400, 3e-3, seed=0)
    return model.state_dict(), characters


def _adapted(seed: int, targets: tuple[str, ...], rank: int) -> float:
    """Return the loss on held-out sums, in nats per character, after training an adapter on the others."""
    weights, characters = _base()
    model = MODELS.build({"type": "xllama", **_SIZES}, vocab_size=len(characters))
    model.load_state_dict(weights)
    _section(rank=rank, targets=targets).attach(model, Key((seed, "adapter")))
    tokens = _encoded(_SUMS.read_text(encoding="utf-8-sig"), characters)
    _train(model, tokens[:-4096], _STEPS, 5e-3, seed=seed)
    with torch.no_grad():
        return _loss(model, tokens[-4096 - 1 :].unfold(0, 65, 64)).item()


def _train(model: Model, tokens: torch.Tensor, steps: int, lr: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr, weight_decay=0.0)
    windows = tokens.unfold(0, 65, 1)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        _loss(model, windows[torch.randint(len(windows), (_ROWS,), generator=generator)]).backward()
        optimizer.step()
        optimizer.zero_grad()


def _loss(model: Model, rows: torch.Tensor) -> torch.Tensor:
    assert isinstance(model, CausalLM)
    return cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())


def _encoded(text: str, characters: str) -> torch.Tensor:
    numbers = {character: number for number, character in enumerate(characters)}
    return torch.tensor([numbers[character] for character in text])
