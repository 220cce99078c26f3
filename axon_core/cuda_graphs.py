"""A decoding step as a CUDA graph: hundreds of kernels that a GPU starts by itself, without waiting for Python."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from axon_core.cache import Cache
from axon_core.compiling import Step
from axon_core.interfaces.model import CausalLM

__all__ = ["graphed"]

Result = tuple[Float[Tensor, "b v"], Float[Tensor, " b"]]

Capture = Callable[[Callable[[], Result]], Callable[[], Result]]
"""Takes down what a function does on the device, without doing it, and returns what does the same again."""


def capture(run: Callable[[], Result]) -> Callable[[], Result]:
    """Capture `run` as a CUDA graph, and return what replays it; the result is the same memory every time."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()

    def replay() -> Result:
        graph.replay()
        return result

    return replay


def graphed(step: Step, capture: Capture = capture) -> Step:
    """Return `step`, for a fixed cache (`Cache.fix`) captured once for each `reach` and then replayed.

    What it returns is overwritten by the next call. A cache that is not fixed runs the step itself; so does one whose
    step cannot be captured, because an attention looks at numbers on the host for instance, after a warning that says
    so. The tests run on CPUs, with a stand-in that records and repeats a step's operations: replay itself is what no
    test of this project has run.
    """
    # By the memory that the graphs work on: `Cache.keep` replaces it.
    known: WeakKeyDictionary[Cache, tuple[Tensor, dict[int, Callable[[Tensor], Result]]]] = WeakKeyDictionary()
    works = True

    def run(model: CausalLM, tokens: Int[Tensor, "b 1"], cache: Cache) -> Result:
        nonlocal works
        if not (cache.fixed and works):
            return step(model, tokens, cache)
        cache.check_room(1)
        memory, graphs = known.get(cache, (None, {}))
        if memory is not cache.positions:
            graphs = {}
            known[cache] = cache.positions, graphs
        reach = cache.reach
        if reach in graphs:
            cache.length += 1
            return graphs[reach](tokens)
        result = step(model, tokens, cache)  # compiles, and lets libraries set up what they need
        length = cache.length
        if length < reach:  # the next token's step is the same
            try:
                graphs[reach] = _replay(step, model, tokens.clone(), cache, capture)
            except RuntimeError as error:
                works = False
                reason = str(error).strip().splitlines()[0]
                warnings.warn(f"decoding is no CUDA graph, and slower for it: {reason}", RuntimeWarning, stacklevel=2)
            cache.length = length  # a step that is captured has not happened
        return result

    return run


def _replay(
    step: Step, model: CausalLM, tokens: Int[Tensor, "b 1"], cache: Cache, capture: Capture
) -> Callable[[Tensor], Result]:
    """Capture a step for whatever will be written into `tokens`."""
    replay = capture(lambda: step(model, tokens, cache))

    def run(new: Int[Tensor, "b 1"]) -> Result:
        tokens.copy_(new)
        return replay()

    return run
