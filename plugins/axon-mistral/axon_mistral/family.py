"""Checkpoints of Mistral."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from axon_core import CheckpointError
from axon_xllama.checkpoints.families import LlamaFamily
from axon_xllama.model import XLlama

__all__ = ["MistralFamily"]

_WINDOW = 4096


class MistralFamily(LlamaFamily):
    """Mistral 7B: a Llama whose attention has a window, if `sliding_window` is not null; absent, it is 4096.

    Source of the settings: `MistralConfig` of transformers 5. Without a window it is a Llama, and is written as one.
    """

    architecture = "MistralForCausalLM"
    model_type = "mistral"
    bias = False
    attentions = ("axon-mistral:SWA",)

    def write(self, model: XLlama) -> dict[str, Any]:
        """Return the settings in `config.json` of a model that fits, but for dtype and markers."""
        attention = cast(Any, model.get_submodule("blocks.0.attention"))
        return {**super().write(model), "sliding_window": attention.config.window}

    def _attention(self, values: Mapping[str, Any], n_heads: Any, eps: Any) -> dict[str, Any]:
        attention = super()._attention(values, n_heads, eps)
        window = values.get("sliding_window", _WINDOW)
        if window is None:
            return attention
        if not isinstance(window, int) or isinstance(window, bool):
            raise CheckpointError(
                f"sliding_window must be a number of tokens or null in config.json, got {window!r:.60}"
            )
        return {**attention, "type": "SWA", "window": window}
