"""Easy and Efficient Transformer (arXiv 2104.12470) as an Axon engine: many questions at once, each as if alone."""

from axon_eet.answer import Answer, AnswerPiece, EngineClosed, ModelFailed, Question, QueueFull, Scored, Usage
from axon_eet.engine import Engine, EngineReport
from axon_eet.setup import parse_size

__all__ = [
    "Answer",
    "AnswerPiece",
    "Engine",
    "EngineClosed",
    "EngineReport",
    "ModelFailed",
    "Question",
    "QueueFull",
    "Scored",
    "Usage",
    "parse_size",
]
