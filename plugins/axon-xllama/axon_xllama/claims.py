"""The claims of the paper's card, checked."""

from __future__ import annotations

import math
import statistics

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from axon_core.checkpoint import weightless
from axon_core.papers import Outcome
from axon_core.text import TextData
from axon_core.training import Muon, fit
from axon_xllama.model import XLlama
from axon_xllama.trainer import CausalLMTrainer

_SEEDS = (0, 1, 2)


def context_length() -> Outcome:
    """Train on equally many tokens with context 8 and 16, and compare the losses on the same held-out tokens.

    The late tokens of a window of 16 stand for tasks that need the longer context, the early ones for the others.
    """
    data = TextData.load({})
    short, long = ([_losses(data, context, seed) for seed in _SEEDS] for context in (8, 16))
    late = [(s[8:] - n[8:]).mean().item() for s, n in zip(short, long, strict=True)]
    early = statistics.mean((n[:8] / s[:8]).mean().item() for s, n in zip(short, long, strict=True))
    improved = statistics.mean(late) > 2 * statistics.stdev(late) / len(late) ** 0.5
    return Outcome(
        improved and early < 1.02,
        f"early tokens' loss changes by {early - 1:+.1%}; late tokens' falls, in nats, by",
        late,
        _SEEDS,
    )


def kv_cache() -> Outcome:
    """Compare the caches' sizes per token with 2 · layers · key/value heads · head size · bytes."""
    measured = {n: _model(n).new_cache(1, 32).nbytes for n in (8, 4, 2, 1)}
    exact = all(nbytes == 32 * 2 * 2 * n * 8 * 4 for n, nbytes in measured.items())
    listed = ", ".join(f"{n} heads {nbytes / 32:.0f}" for n, nbytes in measured.items())
    return Outcome(exact, f"bytes per token: {listed}")


def sizes() -> Outcome:
    """Count the parameters of models with the dimensions, heads and layers of Table 2, and a vocabulary of 32k.

    The feed-forward has ⅔ · 4d features, which the reference code rounds up to a multiple of 256.
    """
    found: list[float] = []
    for dim, n_heads, n_layers in ((4096, 32, 32), (5120, 40, 40), (6656, 52, 60), (8192, 64, 80)):
        with weightless():
            model = XLlama.build(
                vocab_size=32000,
                context=2048,
                dim=dim,
                n_layers=n_layers,
                n_heads=n_heads,
                hidden_dim=-(-8 * dim // 3 // 256) * 256,
                attention="MHA",
            )
        found.append(model.n_parameters / 1e9)
    cut = [math.floor(10 * billions) / 10 for billions in found]
    listed = ", ".join(f"{billions:.3f}B" for billions in found)
    return Outcome(cut == [6.7, 13.0, 32.5, 65.2], f"{listed}: a feed-forward of ⅔ · 4d features, rounded up to 256")


def _model(n_kv_heads: int, vocab_size: int = 256, context: int = 32) -> XLlama:
    attention = {"type": "GQA", "n_kv_heads": n_kv_heads}
    return XLlama.build(vocab_size=vocab_size, context=context, dim=64, n_layers=2, n_heads=8, attention=attention)


def _losses(data: TextData, context: int, seed: int) -> Float[Tensor, " n"]:
    """Train a small model, and return its mean loss at each position of held-out windows of 16 tokens.

    A model with a shorter context sees a window in pieces.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _model(4, data.tokenizer.vocab_size, context)
    optimizer = Muon(lr=0.02, momentum=0.9, embedding_lr=0.1, iteration="polar", iterations=3)
    config = CausalLMTrainer.Config(
        seed=seed,
        steps=400,
        batch_size=512 // context,
        optimizer=optimizer,
        schedule="linear",
        precision="bf16",
        device="cpu",
    )
    fit(CausalLMTrainer(config, {"model": model}, data), progress=False)
    held_out = torch.cat(list(data.held_out_batches(16, 512))[:-1])
    pieces = held_out.unfold(1, context + 1, context).flatten(0, 1)
    with torch.inference_mode():
        losses = cross_entropy(model(pieces[:, :-1]).transpose(1, 2), pieces[:, 1:], reduction="none")
    return losses.view(len(held_out), 16).mean(0)
