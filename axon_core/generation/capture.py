"""Decoding steps that are replayed: the kernels of the previous step run again without re-entering Python."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from axon_core.errors import first_line
from axon_core.generation.compile import Step, compiled_calls
from axon_core.interfaces.cache import Cache, StaticCache
from axon_core.interfaces.model import CausalLM

__all__ = ["WAYS", "Way", "compiled_call", "cuda_graph", "replayed"]

Result = tuple[Float[Tensor, "b v"], Float[Tensor, " b"]]

Capture = Callable[[Callable[[], Result]], Callable[[], Result]]
"""Runs a step and returns a function that repeats it on the later contents of the same memory."""


class Way(NamedTuple):
    """How steps are replayed on devices of one type."""

    capture: Capture
    block: int
    """Slots that become visible at a time (`Cache.make_static`), each time with a capture of its own."""


def replayed(step: Step, capture: Capture) -> Step:
    """Return `step`, for a `StaticCache` captured once for each number of `visible` slots and then replayed.

    The model's modules and weights must stay the same objects meanwhile; values that change in place are seen.
    Any other cache runs the step itself; so does, after a warning, one whose step cannot be captured, for instance
    because an attention reads numbers on the host.
    """
    # With the slot that it reads, which changes when the cache moves, and the number of visible slots.
    known: WeakKeyDictionary[Cache, tuple[Tensor, int, Callable[[Tensor], Result]]] = WeakKeyDictionary()
    works = True

    def run(model: CausalLM, tokens: Int[Tensor, "b 1"], cache: Cache) -> Result:
        nonlocal works
        if not isinstance(cache, StaticCache):
            return step(model, tokens, cache)
        cache.reserve(1)
        visible, length = cache.visible, cache.length + 1
        slot, captured, again = known.get(cache, (None, 0, None))
        if again is not None and slot is cache.slot and captured == visible:
            cache.length = length
            return again(tokens)
        if not (works and length < visible):  # the next token's step is a different one
            return step(model, tokens, cache)
        tokens, results = tokens.clone(), list[Result]()

        def once() -> Result:
            results.append(step(model, tokens, cache))
            return results[-1]

        try:
            known[cache] = cache.slot, visible, _fed(capture(once), tokens)
        except RuntimeError as error:
            if not results:
                raise
            works = False
            reason = first_line(error)
            warnings.warn(
                f"decoding is slower because its steps are not replayed: {reason}", RuntimeWarning, stacklevel=2
            )
        cache.length = length  # undo the runs after the first
        return results[0]

    return run


def _fed(again: Callable[[], Result], tokens: Int[Tensor, "b 1"]) -> Callable[[Tensor], Result]:
    def run(new: Int[Tensor, "b 1"]) -> Result:
        tokens.copy_(new)
        return again()

    return run


def compiled_call(run: Callable[[], Result]) -> Callable[[], Result]:
    """Capture the call of compiled code that `run` makes, and return a function that makes only that call.

    This skips 0.35 ms for 12 layers: checking what the code was compiled for, and collecting its inputs.

    Raises:
        RuntimeError: the model is compiled in several pieces, or its scores are not what they return.
    """
    with compiled_calls() as calls:
        result = run()
    if len(calls) != 1:
        raise RuntimeError(f"the model is compiled in {len(calls)} pieces")
    ((function, inputs, outputs),) = calls
    at = [i for wanted in result for i, output in enumerate(outputs) if output is wanted]
    if len(at) != len(result):
        raise RuntimeError("the scores are not those that the compiled code returns")

    def again() -> Result:
        outputs = function(*inputs)
        return outputs[at[0]], outputs[at[1]]

    return again


def cuda_graph(run: Callable[[], Result]) -> Callable[[], Result]:
    """Capture `run` as a CUDA graph: hundreds of kernels that a GPU starts by itself, without waiting for Python.

    The result is the same memory every time. The tests run on CPUs, with a stand-in that records and repeats a step's
    operations: no test of this project has replayed a graph.
    """
    run()  # compiles, and lets libraries set up what they need
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()

    def again() -> Result:
        graph.replay()
        return result

    return again


WAYS = {"cpu": Way(compiled_call, 32), "cuda": Way(cuda_graph, 256)}
"""The types of devices on which steps are replayed."""
