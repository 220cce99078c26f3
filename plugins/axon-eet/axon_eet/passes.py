"""The pass of a step: eager, or compiled once for all numbers of tokens, texts and blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from axon_core import CausalLM
from axon_eet.packed import NewTokens, Packed, PackedCache

__all__ = ["Pass", "compiled_pass", "eager_pass"]

Pass = Callable[[Sequence[NewTokens], Sequence[int]], Float[Tensor, "s v"]]
"""Runs a model on new tokens of some texts, and returns the scores of the token after those at the given places."""

_OPTIONS = {
    "size_asserts": False,
    "alignment_asserts": False,
    "cpp.threads": 1,  # small loops: OpenMP's threads would wait for each other longer than they compute
    "guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe,
}


def eager_pass(model: CausalLM, cache: PackedCache) -> Pass:
    """Return the pass that runs the model's modules one after the other."""

    def run(texts: Sequence[NewTokens], places: Sequence[int]) -> Float[Tensor, "s v"]:
        packed = Packed.of(texts, cache.device)
        cache.load(packed)
        features = model.features(packed.tokens, cache=cache)[0]
        if not places:
            return features.new_empty(0, model.config.vocab_size)
        return model.logits(features[torch.tensor(places, device=cache.device)].unsqueeze(0))[0]

    return run


def compiled_pass(model: CausalLM, cache: PackedCache, spare: int) -> Pass:
    """Return the same pass as one piece of code for all sizes, compiled here, which takes a minute or more.

    The sizes are variables of the code, except for sizes of 1, for which PyTorch would compile other code with other
    rounding. A pass with a single text therefore gets a token of no text beside it, stored in block `spare`.

    Raises:
        Exception: whatever PyTorch raises where it cannot compile the model, for instance for want of a C++ compiler.
    """
    from torch._dynamo.decorators import mark_static

    for layer in cache.blocks:
        for buffer in layer.buffers.values():
            mark_static(buffer)
    scores: Any = torch.compile(_scores, dynamic=True, fullgraph=True, isolate_recompiles=True, options=_OPTIONS)  # pyright: ignore
    beside: NewTokens = [0], 0, [spare, spare]

    def run(texts: Sequence[NewTokens], places: Sequence[int]) -> Float[Tensor, "s v"]:
        if len(texts) == 1 or max(len(blocks) for _, _, blocks in texts) == 1:
            texts = [*texts, beside]
        packed = Packed.of(texts, cache.device)
        cache.load(packed)
        padded = [*places, 0, 0][: max(2, len(places))]
        return scores(model, cache, packed.tokens, torch.tensor(padded, device=cache.device))[: len(places)]

    with torch.inference_mode():
        for sizes in ((3, 2, 4, 1, 1), (1,), (1,) * 16):  # the first has no two equal sizes, which would become one
            run([([0] * n, 0, [spare] * 7) for n in sizes], [0] * min(3, len(sizes)))
    return run


def _scores(
    model: CausalLM, cache: PackedCache, tokens: Int[Tensor, "1 n"], places: Int[Tensor, " s"]
) -> Float[Tensor, "s v"]:
    features = model.features(tokens, cache=cache)[0]
    return model.logits(features[places].unsqueeze(0))[0]
