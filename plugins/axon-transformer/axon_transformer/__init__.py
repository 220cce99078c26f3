"""Attention Is All You Need (arXiv 1706.03762): multi-head attention, layer normalisation, sinusoidal positions."""

from axon_transformer.attention import MultiHeadAttention
from axon_transformer.norm import LayerNorm
from axon_transformer.positions import sinusoids

__all__ = ["LayerNorm", "MultiHeadAttention", "sinusoids"]
