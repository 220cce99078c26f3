"""The algorithms of a presentation of Llama, in the notation of arXiv 2207.09238, beside the lines that do them."""

from axon_lab.pseudocode.algorithm import Anchor, NumberedStep, PseudocodeAlgorithm, load_algorithms
from axon_lab.pseudocode.anchors import Definition, SourceSpan, find_definition, find_span, missing_lines

__all__ = [
    "Anchor",
    "Definition",
    "NumberedStep",
    "PseudocodeAlgorithm",
    "SourceSpan",
    "find_definition",
    "find_span",
    "load_algorithms",
    "missing_lines",
]
