"""Hugging Face architectures that an X-Llama can be: what they call its tensors and settings.

A family describes as data how an X-Llama's options are written in `config.json`; `hugging_face` reads and writes by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from axon_xllama.checkpoints.layout import Bias, Names

_LAYER = "model.layers.{}."
_LLAMA: Names = {
    "embedding": ["model.embed_tokens.weight"],
    "attention.qkv.projection": [f"{_LAYER}self_attn.{part}_proj.weight" for part in "qkv"],
    "attention.out": [f"{_LAYER}self_attn.o_proj.weight"],
    "attention_norm": [f"{_LAYER}input_layernorm.weight"],
    "feed_forward.gate_up": [f"{_LAYER}mlp.gate_proj.weight", f"{_LAYER}mlp.up_proj.weight"],
    "feed_forward.down": [f"{_LAYER}mlp.down_proj.weight"],
    "feed_forward_norm": [f"{_LAYER}post_attention_layernorm.weight"],
    "norm": ["model.norm.weight"],
    "head": ["lm_head.weight"],
}
_QKV_BIAS: Names = {"attention.qkv.projection.bias": [f"{_LAYER}self_attn.{part}_proj.bias" for part in "qkv"]}
_OUT_BIAS: Names = {"attention.out.bias": [f"{_LAYER}self_attn.o_proj.bias"]}
_BIASES: Mapping[Bias, Names] = {False: {}, "qkv": _QKV_BIAS, True: {**_QKV_BIAS, **_OUT_BIAS}}
_NO_BIAS = "X-Llama's feed-forward has no bias"
_WHOLE_TEXT = "X-Llama's attention sees the whole text"


@dataclass(frozen=True)
class Family:
    """One architecture."""

    model_type: str
    """Its name in `config.json`."""
    architecture: str
    """The class of transformers that computes it."""
    weights: Names
    """Its tensors, biases aside."""
    qk_norm: bool = False
    """Whether every query and key head is normalised, with the ε of the other norms."""
    bias: Bias | None = None
    """Which projections of attention have a bias; None where `attention_bias` says it."""
    head_dim: int | None = None
    """Features of a head if `config.json` does not say; None for dim / n_heads."""
    off: Mapping[str, str] | None = None
    """Settings that must be false, each with the reason."""

    def names(self, bias: Bias) -> Names:
        """Return its tensors, those of biases too, for an attention with `bias`."""
        return {**self.weights, **_BIASES[bias]}


FAMILIES: Mapping[str, Family] = {
    family.model_type: family
    for family in (
        Family("llama", "LlamaForCausalLM", _LLAMA, off={"mlp_bias": _NO_BIAS}),
        Family("qwen2", "Qwen2ForCausalLM", _LLAMA, bias="qkv", off={"use_sliding_window": _WHOLE_TEXT}),
        Family(
            "qwen3",
            "Qwen3ForCausalLM",
            {**_LLAMA, **{f"attention.{part}_norm": [f"{_LAYER}self_attn.{part}_norm.weight"] for part in "qk"}},
            qk_norm=True,
            head_dim=128,
            off={"use_sliding_window": _WHOLE_TEXT},
        ),
    )
}
"""The families by their `model_type`."""

SIZES: Mapping[str, tuple[str, ...]] = {
    "vocab_size": ("vocab_size",),
    "context": ("max_position_embeddings", "max_sequence_length"),  # the latter in conversions of early 2023
    "dim": ("hidden_size",),
    "n_layers": ("num_hidden_layers",),
    "n_heads": ("num_attention_heads",),
    "hidden_dim": ("intermediate_size",),
}
"""X-Llama's sizes, and what `config.json` calls them; the first is written."""
