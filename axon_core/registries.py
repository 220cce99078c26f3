"""The core's registries of parts and models; others lie beside their interfaces."""

from __future__ import annotations

from typing import TYPE_CHECKING

from axon_core.registry.registry import Registry

if TYPE_CHECKING:
    from axon_core.interfaces.attention import Attention
    from axon_core.interfaces.model import Model
    from axon_core.interfaces.norm import Norm
    from axon_core.interfaces.rotary_embedding import RotaryEmbedding

__all__ = ["ATTENTIONS", "MODELS", "NORMS", "ROTARY_EMBEDDINGS"]

ATTENTIONS: Registry[Attention] = Registry("attention", "axon_core.interfaces.attention:Attention")
"""Attentions by key."""
ROTARY_EMBEDDINGS: Registry[RotaryEmbedding] = Registry(
    "rotary_embedding", "axon_core.interfaces.rotary_embedding:RotaryEmbedding"
)
"""Rotary embeddings by key."""
NORMS: Registry[Norm] = Registry("norm", "axon_core.interfaces.norm:Norm")
"""Norms by key."""
MODELS: Registry[Model] = Registry("model", "axon_core.interfaces.model:Model")
"""Models by key."""
