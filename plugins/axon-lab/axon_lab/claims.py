"""Checks of the card's claims; `axon reproduce lab` runs them."""

from __future__ import annotations

from importlib.util import find_spec

from axon_core import NotRun, Outcome
from axon_lab.pseudocode import load_algorithms, missing_lines
from axon_lab.pseudocode.comparisons import TOLERANCE, largest_difference


def steps_have_lines() -> Outcome:
    """Check that every step of every algorithm names lines of the installed source, each once in its definition.

    Raises:
        NotRun: a plugin whose source they name is not installed.
    """
    algorithms = load_algorithms()
    anchors = [anchor for algorithm in algorithms for step in algorithm.step for anchor in step.code]
    packages = sorted({anchor.at.partition(":")[0].partition(".")[0] for anchor in anchors})
    if absent := [package for package in packages if find_spec(package) is None]:
        raise NotRun(f"the steps name lines of {', '.join(absent)}, which this environment does not have; install them")
    wrong = [message for algorithm in algorithms for message in missing_lines(algorithm)]
    steps = sum(len(algorithm.step) for algorithm in algorithms)
    found = f"{len(anchors)} pieces of source for {steps} steps of {len(algorithms)} algorithms"
    return Outcome(not wrong, "; ".join(wrong) if wrong else f"{found}, all there")


def embedding_and_unembedding() -> Outcome:
    """Compare X-Llama's two ends with Algorithms 1 and 7."""
    return _agreement("token-embedding", "unembedding")


def attention() -> Outcome:
    """Compare multi-head attention, and one head of it, with Algorithms 3, 4 and 5."""
    return _agreement("single-query-attention", "attention", "multi-head-attention")


def llama_parts() -> Outcome:
    """Compare the parts that Llama puts in the places of Algorithms 2, 5 and 6 and of the perceptron."""
    return _agreement("rotary-embedding", "grouped-query-attention", "rmsnorm", "swiglu")


def decoder_only_transformer() -> Outcome:
    """Compare X-Llama with Algorithm 10, with Llama's parts in it."""
    return _agreement("decoder-only-transformer")


def _agreement(*algorithms: str) -> Outcome:
    worst = {algorithm: largest_difference(algorithm) for algorithm in algorithms}
    text = ", ".join(f"{algorithm} {difference:.0e}" for algorithm, difference in worst.items())
    return Outcome(max(worst.values()) <= TOLERANCE, f"largest difference in float64: {text}")
