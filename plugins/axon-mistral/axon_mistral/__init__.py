"""Mistral 7B (arXiv 2310.06825) for Axon: sliding-window attention with a rolling cache, and its checkpoints."""

from axon_mistral.attention import SlidingWindowAttention, attend_near

__all__ = ["SlidingWindowAttention", "attend_near"]
