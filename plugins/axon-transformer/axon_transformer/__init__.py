"""Attention Is All You Need (arXiv 1706.03762): the Transformer, its parts, and a translator trained with it."""

from axon_transformer.attention import MultiHeadAttention
from axon_transformer.averaging import average
from axon_transformer.bleu import bleu
from axon_transformer.heatmap import cross_attention
from axon_transformer.model import Transformer
from axon_transformer.norm import LayerNorm
from axon_transformer.positions import sinusoids
from axon_transformer.search import Search, beam_search
from axon_transformer.trainer import TranslationTrainer
from axon_transformer.translate import Translation, Translator

__all__ = [
    "LayerNorm",
    "MultiHeadAttention",
    "Search",
    "Transformer",
    "Translation",
    "TranslationTrainer",
    "Translator",
    "average",
    "beam_search",
    "bleu",
    "cross_attention",
    "sinusoids",
]
