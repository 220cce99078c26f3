"""RoFormer's rotary position embeddings (arXiv 2104.09864) for Axon: `rotary`, `linear` and `dynamic`."""

from axon_roformer.layout import half_to_interleaved, interleaved_to_half
from axon_roformer.rotary import DynamicRotary, LinearRotary, Rotary, frequencies

__all__ = ["DynamicRotary", "LinearRotary", "Rotary", "frequencies", "half_to_interleaved", "interleaved_to_half"]
