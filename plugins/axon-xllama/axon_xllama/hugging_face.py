"""The weights of `transformers.LlamaForCausalLM` as X-Llama's, and back.

Both rotate feature pairs (i, i + d/2) (layout `half`), so that rows are only stacked, never permuted: X-Llama keeps
the query, key and value projections in one matrix, and the feed-forward's two input matrices in another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from axon_core.config import Spec
from axon_core.errors import CheckpointError
from axon_xllama.model import XLlama

_WHOLE = {"embedding": ["model.embed_tokens"], "norm": ["model.norm"], "head": ["lm_head"]}
_BLOCK = {
    "attention.qkv.projection": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "attention.out": ["self_attn.o_proj"],
    "attention_norm": ["input_layernorm"],
    "feed_forward.gate_up": ["mlp.gate_proj", "mlp.up_proj"],
    "feed_forward.down": ["mlp.down_proj"],
    "feed_forward_norm": ["post_attention_layernorm"],
}


def config_from_hugging_face(values: Mapping[str, Any]) -> XLlama.Config:
    """Return the X-Llama config that a `config.json` of a Llama describes.

    Raises:
        CheckpointError: the model is no Llama, or has a setting X-Llama does not know, such as another rope scaling.
    """
    if values.get("model_type") != "llama":
        raise CheckpointError(f"model_type must be 'llama' to become an X-Llama, got {values.get('model_type')!r}")
    if values.get("hidden_act", "silu") != "silu":
        raise CheckpointError(f"hidden_act must be 'silu', got {values['hidden_act']!r}")
    for field in ("attention_bias", "mlp_bias"):
        if values.get(field):
            raise CheckpointError(f"{field} must be false: X-Llama's projections have no bias")
    n_heads = values["num_attention_heads"]
    return XLlama.Config(
        vocab_size=values["vocab_size"],
        context=values["max_position_embeddings"],
        dim=values["hidden_size"],
        n_layers=values["num_hidden_layers"],
        n_heads=n_heads,
        hidden_dim=values["intermediate_size"],
        attention=Spec.of(
            {
                "type": "GQA",
                "n_kv_heads": values.get("num_key_value_heads") or n_heads,
                "head_dim": values.get("head_dim") or values["hidden_size"] // n_heads,
            }
        ),
        rotary=_rotary(values),
        norm=Spec.of({"type": "rmsnorm", "eps": values["rms_norm_eps"]}),
        tie_embeddings=values.get("tie_word_embeddings", False),
    )


def from_hugging_face(tensors: Mapping[str, Tensor], config: XLlama.Config) -> dict[str, Tensor]:
    """Return X-Llama's state dict for the tensors of a `LlamaForCausalLM`.

    Raises:
        CheckpointError: a tensor is missing.
    """
    state: dict[str, Tensor] = {}
    for name, sources in _names(config):
        missing = [source for source in sources if source not in tensors]
        if missing:
            raise CheckpointError(f"the checkpoint has no tensor {missing[0]!r}; is a file of it missing?")
        parts = [tensors[source] for source in sources]
        state[name] = parts[0] if len(parts) == 1 else torch.cat(parts)
    if config.tie_embeddings:
        state["head.weight"] = state["embedding.weight"]
    return state


def to_hugging_face(state: Mapping[str, Tensor], config: XLlama.Config) -> dict[str, Tensor]:
    """Return the tensors of a `LlamaForCausalLM` for X-Llama's state dict: the inverse of `from_hugging_face`."""
    head_dim = config.attention.options.get("head_dim", config.dim // config.n_heads)
    n_kv_heads = config.attention.options.get("n_kv_heads", config.n_heads)
    rows = {3: [config.n_heads * head_dim, n_kv_heads * head_dim, n_kv_heads * head_dim], 2: [config.hidden_dim] * 2}
    tensors: dict[str, Tensor] = {}
    for name, sources in _names(config):
        parts = [state[name]] if len(sources) == 1 else state[name].split(rows[len(sources)])
        tensors.update(zip(sources, parts, strict=True))
    return tensors


def _names(config: XLlama.Config) -> Iterator[tuple[str, list[str]]]:
    """X-Llama's tensors, each with the tensors it stacks."""
    for name, sources in _WHOLE.items():
        if not (name == "head" and config.tie_embeddings):
            yield f"{name}.weight", [f"{source}.weight" for source in sources]
    for i in range(config.n_layers):
        for name, sources in _BLOCK.items():
            yield f"blocks.{i}.{name}.weight", [f"model.layers.{i}.{source}.weight" for source in sources]


def _rotary(values: Mapping[str, Any]) -> Spec:
    """The rotary spec; transformers 5 writes `rope_parameters`, earlier versions `rope_theta` and `rope_scaling`."""
    rope = {"rope_theta": values.get("rope_theta", 10000.0), **(values.get("rope_scaling") or {})}
    rope |= values.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    match kind:
        case "default":
            return Spec.of({"type": "rotary", "base": rope["rope_theta"]})
        case "linear" | "dynamic":
            return Spec.of({"type": kind, "base": rope["rope_theta"], "factor": rope["factor"]})
        case _:
            raise CheckpointError(f"rope scaling {kind!r} is not supported; known: default, linear, dynamic")
