"""Temporal Shift Module (arXiv 1811.08383) for Axon: some features of each token are those of tokens before it."""

from axon_tsm.shift import TokenShift, shift_features

__all__ = ["TokenShift", "shift_features"]
