"""`axon import FILE.gguf`: a GGUF file as a model folder, weights in full precision."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from axon_core import CheckpointError
from axon_core.registry import import_optional
from axon_core.text import Tokenizer
from axon_xllama.checkpoints.families import family_named
from axon_xllama.checkpoints.layout import Names, Stored
from axon_xllama.gguf.keys import Keys
from axon_xllama.gguf.rotary import rope_parameters
from axon_xllama.gguf.tokenizer_keys import vocabulary_from
from axon_xllama.model import XLlama

__all__ = ["open_gguf"]

_ARCHITECTURES = ("llama", "qwen2", "qwen3")
_VERSIONS = (2, 3)
_FACTORS = "rope_freqs.weight"
_MOST = 65_536
"""Of layers, and of heads."""
_TENSORS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.{}.input_layernorm": "blk.{}.attn_norm",
    "model.layers.{}.self_attn.q_proj": "blk.{}.attn_q",
    "model.layers.{}.self_attn.k_proj": "blk.{}.attn_k",
    "model.layers.{}.self_attn.v_proj": "blk.{}.attn_v",
    "model.layers.{}.self_attn.o_proj": "blk.{}.attn_output",
    "model.layers.{}.self_attn.q_norm": "blk.{}.attn_q_norm",
    "model.layers.{}.self_attn.k_norm": "blk.{}.attn_k_norm",
    "model.layers.{}.post_attention_layernorm": "blk.{}.ffn_norm",
    "model.layers.{}.mlp.gate_proj": "blk.{}.ffn_gate",
    "model.layers.{}.mlp.up_proj": "blk.{}.ffn_up",
    "model.layers.{}.mlp.down_proj": "blk.{}.ffn_down",
}
"""Hugging Face's names of tensors, and llama.cpp's."""


def open_gguf(file: Path) -> tuple[XLlama.Config, dict[str, Stored], Names, Tokenizer]:
    """Return the config, the tensors, their names and the tokenizer of a GGUF file, without reading the weights.

    Tensors of every type that the package `gguf` can dequantise become float32; float16, bfloat16 and float32 stay.
    Format: GGUF version 3 of llama.cpp.

    Raises:
        CheckpointError: it is no GGUF file, or damaged, or of an architecture, tensor type, rotary scaling or tokenizer
            that is not known.
        UsageError: the package `gguf` is not installed.
    """
    library: Any = import_optional("gguf", "gguf")
    keys, tensors = _contents(library, file)
    architecture = keys.text("general.architecture")
    if architecture not in _ARCHITECTURES:
        raise CheckpointError(f"general.architecture must be {', '.join(_ARCHITECTURES)}, got {architecture!r:.60}")
    vocabulary = vocabulary_from(keys)
    config = _config(keys, architecture, tensors, len(vocabulary.tokens))
    names = {
        ours: [f"{_TENSORS[base]}.{suffix}" for base, _, suffix in (name.rpartition(".") for name in theirs)]
        for ours, theirs in family_named(architecture).names(config).items()
    }
    stored = {name: _stored(library, file, tensor) for name, tensor in tensors.items() if name != _FACTORS}
    return config, stored, names, vocabulary.tokenizer()


def _contents(library: Any, file: Path) -> tuple[Keys, dict[str, Any]]:
    """Return the keys and the tensors of a file."""
    types = {kind.value for kind in library.GGMLQuantizationType}

    class Reader(library.GGUFReader):
        def _build_tensors(self, start_offs: int, fields: list[Any]) -> None:
            for field in fields:  # whose names the package leaves out of its message
                if (kind := int(field.parts[4][0])) not in types:
                    raise CheckpointError(f"{field.name!r:.80} in {file} is of type {kind}, which is not known")
            super()._build_tensors(start_offs, fields)

    with file.open("rb") as stream:
        start = stream.read(8)
    if start[:4] != b"GGUF":
        raise CheckpointError(f"{file} is not a GGUF file: it does not begin with these letters")
    if len(start) == 8 and (version := int.from_bytes(start[4:], "little")) not in _VERSIONS:
        raise CheckpointError(f"{file} must be a GGUF file of version 2 or 3, got {version}; convert the model again")
    try:
        reader = Reader(file)
        values = {name: _value(library, field) for name, field in reader.fields.items()}
    except (ValueError, OSError, IndexError, KeyError, TypeError, OverflowError, MemoryError):
        raise CheckpointError(f"{file} is damaged or truncated; copy it again") from None
    return Keys(values), {tensor.name: tensor for tensor in reader.tensors}


def _value(library: Any, field: Any) -> Any:
    """Return the value of a key: a float32 as the shortest decimal that it stands for, such as 1e-05."""
    value = field.contents()
    return float(str(np.float32(value))) if field.types == [library.GGUFValueType.FLOAT32] else value


def _config(keys: Keys, a: str, tensors: Mapping[str, Any], tokens: int) -> XLlama.Config:
    """Return the X-Llama by way of the `config.json` that says the same; `a` is the architecture."""
    if experts := keys.count(f"{a}.expert_count", least=0):
        raise CheckpointError(
            f"{a}.expert_count is {experts}, but a mixture of experts is not read from a GGUF file; import its Hugging "
            "Face folder"
        )
    dim, context, hidden_dim = (
        keys.needed(key, keys.count(key))
        for key in (f"{a}.{name}" for name in ("embedding_length", "context_length", "feed_forward_length"))
    )
    heads, kv_heads, head_dim = _heads(keys, a, dim)
    layers, epsilon = f"{a}.block_count", f"{a}.attention.layer_norm_rms_epsilon"
    embedding, factors = tensors.get("token_embd.weight"), tensors.get(_FACTORS)
    rope = rope_parameters(keys, a, context, head_dim, None if factors is None else np.array(factors.data))
    if rope["rope_type"] == "linear":  # which extends the context here; the file has the one after it
        context = max(1, round(context / rope["factor"]))
    config = family_named(a).read(
        {
            "vocab_size": tokens if embedding is None else int(embedding.shape[-1]),
            "max_position_embeddings": context,
            "hidden_size": dim,
            "num_hidden_layers": keys.needed(layers, keys.count(layers, most=_MOST)),
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "intermediate_size": hidden_dim,
            "rms_norm_eps": keys.needed(epsilon, keys.number(epsilon, least=0)),
            "attention_bias": "blk.0.attn_output.bias" in tensors,
            "tie_word_embeddings": "output.weight" not in tensors,
            "rope_parameters": rope,
        }
    )
    if a != "llama":
        return config
    # llama.cpp rotates the features (2i, 2i + 1) of a `llama`, and the file has its rows in that order.
    return config.model_copy(update={"rotary": config.rotary.model_copy(update={"layout": "interleaved"})})


def _heads(keys: Keys, a: str, dim: int) -> tuple[int, int, int]:
    """Return the numbers of heads and of key/value heads, and the features of each."""
    key = f"{a}.attention.head_count"
    heads = keys.needed(key, keys.count(key, most=_MOST))
    kv_heads = keys.count(f"{key}_kv", most=_MOST) or heads
    if heads % kv_heads:
        raise CheckpointError(f"{key}_kv must divide {key}, {heads}, got {kv_heads}")
    head_dim = keys.count(f"{a}.attention.key_length")
    if head_dim is None and dim % heads:
        raise CheckpointError(f"{a}.embedding_length must be a multiple of {key}, {heads}, got {dim}")
    head_dim = head_dim or dim // heads
    for name, reason in (
        ("attention.value_length", "keys and values of a head have as many features"),
        ("rope.dimension_count", "all features of a head are rotated"),
    ):
        if (found := keys.count(f"{a}.{name}", least=0)) not in (None, head_dim):
            raise CheckpointError(f"{a}.{name} must be {head_dim}, because in an X-Llama {reason}, got {found}")
    return heads, kv_heads, head_dim


def _stored(library: Any, file: Path, tensor: Any) -> Stored:
    """Return a tensor, read and dequantised on demand."""
    kind, shape = tensor.tensor_type, tuple(int(size) for size in reversed(tensor.shape))
    kept = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    if kind.name in kept:
        return Stored(shape, kept[kind.name], partial(_plain, tensor, shape, kept[kind.name]))
    try:
        library.dequantize(np.zeros(library.GGML_QUANT_SIZES[kind][1], np.uint8), kind)  # one block
    except NotImplementedError:
        raise CheckpointError(
            f"{tensor.name!r:.80} in {file} is of type {kind.name}, which cannot be dequantised"
        ) from None
    return Stored(shape, torch.float32, lambda: torch.from_numpy(library.dequantize(tensor.data, kind)).view(shape))


def _plain(tensor: Any, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.array(tensor.data)).view(torch.uint8).view(dtype).view(shape)
