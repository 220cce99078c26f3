"""Easy and Efficient Transformer (arXiv 2104.12470) as an Axon engine: many questions at once, each as if alone."""

from axon_eet.answer import Answer, EngineClosed, ModelFailed, Piece, Question, QueueFull, Scored, Usage
from axon_eet.engine import Engine, Report
from axon_eet.setup import parse_size

__all__ = [
    "Answer",
    "Engine",
    "EngineClosed",
    "ModelFailed",
    "Piece",
    "Question",
    "QueueFull",
    "Report",
    "Scored",
    "Usage",
    "parse_size",
]
