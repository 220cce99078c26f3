"""`axon import FILE.gguf`: a GGUF file as a model folder, weights in full precision."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import log
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
from axon_xllama.gguf.vocabulary import GGUFVocabulary
from axon_xllama.model import XLlama

__all__ = ["open_gguf"]

_ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_LLAMA3 = [(factor, 8192) for factor in (8.0, 32.0, 16.0, 4.0)]
"""Scalings of Llama 3.1 to 3.3, of which a file has only what they do to the frequencies."""


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
    try:
        reader = library.GGUFReader(file)
        values = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, OSError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"{file} is not a GGUF file, or damaged: {error}") from None
    architecture = values.get("general.architecture")
    if architecture not in _ARCHITECTURES:
        raise CheckpointError(f"the architecture must be {', '.join(_ARCHITECTURES)}, got {architecture!r:.60}")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    settings = {name.partition(".")[2]: value for name, value in values.items() if name.startswith(f"{architecture}.")}
    vocabulary = _vocabulary(values)
    named = _names(tensors, architecture, settings)
    config = _config(architecture, settings, tensors, len(vocabulary.tokens))
    family = family_named(_ARCHITECTURES[architecture])
    stored = {named[name]: _stored(library, file, tensor) for name, tensor in tensors.items() if name in named}
    return config, stored, family.names(config), vocabulary.tokenizer()


def _names(tensors: Mapping[str, Any], architecture: str, settings: Mapping[str, Any]) -> dict[str, str]:
    """Return Hugging Face's names of the tensors."""
    layers = settings.get("block_count")
    if not isinstance(layers, int) or not 0 < layers < 65_536:
        raise CheckpointError(f"{architecture}.block_count must be a number of layers, got {layers!r:.60}")
    found: dict[str, str] = {}
    ours = {
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        "output": "lm_head",
        **{
            f"blk.{i}.{theirs}": f"model.layers.{i}.{hugging_face}"
            for i in range(layers)
            for theirs, hugging_face in _LAYER.items()
        },
    }
    for name in tensors:
        base, _, suffix = name.rpartition(".")
        if base in ours and suffix in ("weight", "bias"):
            found[name] = f"{ours[base]}.{suffix}"
        elif name != "rope_freqs.weight":
            raise CheckpointError(f"the file has a tensor {name!r:.80}, which is not part of a {architecture}")
    return found


_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _config(architecture: str, settings: Mapping[str, Any], tensors: Mapping[str, Any], tokens: int) -> XLlama.Config:
    """Return the X-Llama by way of the `config.json` that says the same."""
    heads = settings.get("attention.head_count")
    embedding = tensors.get("token_embd.weight")
    rows = int(embedding.shape[-1]) if embedding is not None else tokens
    values = {
        "vocab_size": rows,
        "max_position_embeddings": _trained(settings),
        "hidden_size": settings.get("embedding_length"),
        "num_hidden_layers": settings.get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": settings.get("attention.head_count_kv", heads),
        "head_dim": settings.get("attention.key_length"),
        "intermediate_size": settings.get("feed_forward_length"),
        "rms_norm_eps": settings.get("attention.layer_norm_rms_epsilon"),
        "attention_bias": "blk.0.attn_output.bias" in tensors,
        "tie_word_embeddings": "output.weight" not in tensors,
        "rope_parameters": _rope(settings, tensors),
    }
    missing = [name for name, value in values.items() if value is None and name != "head_dim"]
    if missing:
        raise CheckpointError(f"the GGUF file does not say {', '.join(missing)}, in Hugging Face's terms")
    config = family_named(_ARCHITECTURES[architecture]).read(values)
    if architecture != "llama":
        return config
    # llama.cpp rotates the features (2i, 2i + 1) of a `llama`, and the file has its rows in that order.
    return config.model_copy(update={"rotary": config.rotary.model_copy(update={"layout": "interleaved"})})


def _trained(settings: Mapping[str, Any]) -> Any:
    """Return the context before a linear scaling, which extends it here; the file has the one after it."""
    context, factor = settings.get("context_length"), settings.get("rope.scaling.factor")
    if settings.get("rope.scaling.type") == "linear" and isinstance(context, int) and factor:
        return max(1, round(context / factor))
    return context


def _rope(settings: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    base = settings.get("rope.freq_base", 10000.0)
    kind = settings.get("rope.scaling.type", "none")
    if "rope_freqs.weight" in tensors:
        return {"rope_theta": base, **_llama3(np.array(tensors["rope_freqs.weight"].data), base)}
    match kind:
        case "none":
            return {"rope_theta": base, "rope_type": "default"}
        case "linear":
            return {"rope_theta": base, "rope_type": "linear", "factor": settings.get("rope.scaling.factor")}
        case "yarn":
            factor = settings.get("rope.scaling.factor")
            share = settings.get("rope.scaling.attn_factor", 1.0)
            found = {
                "rope_theta": base,
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": settings.get("rope.scaling.original_context_length"),
                "beta_fast": settings.get("rope.scaling.yarn_beta_fast"),
                "beta_slow": settings.get("rope.scaling.yarn_beta_slow"),
            }
            if share != 1 and factor:
                found["attention_factor"] = share * (0.1 * log(factor) + 1)
            return found
        case other:
            raise CheckpointError(f"the rotary scaling {other!r:.60} of a GGUF file is not known")


def _llama3(factors: np.ndarray, base: float) -> dict[str, Any]:
    """Return the scaling whose factors these are."""
    dim = 2 * len(factors)
    theta = base ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    for factor, context in _LLAMA3:
        u = np.clip((context * theta / (2 * np.pi) - 1) / 3, 0, 1)
        if np.allclose(1 / ((1 - u) / factor + u), factors, rtol=1e-4):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": context,
            }
    raise CheckpointError("rope_freqs.weight holds factors that are not those of Llama 3.1 to 3.3")


def _vocabulary(values: Mapping[str, Any]) -> GGUFVocabulary:
    """Return the tokenizer's description. Raises `CheckpointError` if it is incomplete."""
    told = {name.removeprefix("tokenizer.ggml."): value for name, value in values.items()}
    tokens, kinds = told.get("tokens"), told.get("token_type")
    if not isinstance(tokens, list) or not tokens:
        raise CheckpointError("the GGUF file has no tokens")
    kinds = kinds if isinstance(kinds, list) else [1] * len(tokens)
    model = told.get("model")
    if model not in ("llama", "gpt2"):
        raise CheckpointError(f"the tokenizer must be of the model 'llama' or 'gpt2', got {model!r:.60}")
    scores, merges = told.get("scores"), told.get("merges")
    if model == "llama" and not (isinstance(scores, list) and len(scores) == len(tokens)):
        raise CheckpointError("the GGUF file has no score for each token")
    if len(kinds) != len(tokens):
        raise CheckpointError("the GGUF file has no type for each token")
    template = values.get("tokenizer.chat_template")
    others = {told[name] for name in ("eot_token_id", "eom_token_id") if isinstance(told.get(name), int)}
    return GGUFVocabulary(
        model,
        tokens,
        kinds,
        scores=scores or [],
        merges=merges if isinstance(merges, list) else [],
        splitter=str(told.get("pre", "gpt-2")),
        bos=told.get("bos_token_id"),
        eos=told.get("eos_token_id"),
        unknown=told.get("unknown_token_id"),
        add_bos=bool(told.get("add_bos_token", model == "llama")),
        add_space=bool(told.get("add_space_prefix", True)),
        ends=frozenset(others),
        chat_template=template if isinstance(template, str) else "",
    )


def _stored(library: Any, file: Path, tensor: Any) -> Stored:
    """Return a tensor, read and dequantised on demand."""
    kind, shape = tensor.tensor_type, tuple(int(size) for size in reversed(tensor.shape))
    kept = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    if kind.name in kept:
        return Stored(shape, kept[kind.name], partial(_plain, tensor, shape, kept[kind.name]))
    if kind not in library.quants._type_traits:
        raise CheckpointError(f"{tensor.name!r:.80} in {file} is of type {kind.name}, which cannot be dequantised")
    return Stored(shape, torch.float32, lambda: torch.from_numpy(library.dequantize(tensor.data, kind)).view(shape))


def _plain(tensor: Any, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.array(tensor.data)).view(torch.uint8).view(dtype).view(shape)
