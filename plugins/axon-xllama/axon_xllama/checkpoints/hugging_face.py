"""`transformers.LlamaForCausalLM`: its folders, its config and its tensors, as X-Llama's and back.

It rotates feature pairs (i, i + d/2) (layout `half`), as X-Llama does by default: rows are only stacked, not permuted.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor

from axon_core.documents import parse_json
from axon_core.errors import CheckpointError
from axon_core.tokenizer import Tokenizer
from axon_xllama.checkpoints.layout import Names, Settings, Stored, checked, configured, parts_of, skeleton
from axon_xllama.checkpoints.safetensors_files import stored_in
from axon_xllama.model import XLlama

_LAYER = "model.layers.{}."
NAMES: Names = {
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
_WEIGHTS = "model.safetensors"
_INDEX = f"{_WEIGHTS}.index.json"


def open_folder(folder: Path) -> tuple[XLlama.Config, dict[str, Stored]]:
    """Return the config and the tensors of a folder that `save_pretrained` wrote.

    Raises:
        CheckpointError: a file is missing or damaged, or it is no Llama that X-Llama can be.
    """
    config = config_from_hugging_face(read_json(folder / "config.json"))
    if (folder / _INDEX).exists():
        places = read_json(folder / _INDEX).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
            raise CheckpointError(f"{folder / _INDEX} is damaged: it has no weight_map of file names")
        files = sorted(set(places.values()))
        for name in files:
            # By its letters alone: files in a download cache are links to elsewhere, and may be.
            if PurePath(name).name != name or name in ("", "..") or "\\" in name:
                raise CheckpointError(f"{folder / _INDEX} names {name!r}, which is no file in that folder; refused")
        tensors = {name: tensor for file in files for name, tensor in stored_in(folder / file).items()}
        if missing := sorted(places.keys() - tensors.keys()):
            raise CheckpointError(f"{folder / places[missing[0]]} should hold {missing[0]!r}, but does not")
    elif (folder / _WEIGHTS).exists():
        tensors = stored_in(folder / _WEIGHTS)
    else:
        pickled = any(folder.glob("pytorch_model*.bin"))
        remedy = "; convert its pytorch_model.bin to safetensors first" if pickled else ""
        raise CheckpointError(f"{folder} has no weights: neither {_WEIGHTS} nor {_INDEX}{remedy}")
    return config, _known(tensors, config)


def add_bos(folder: Path) -> bool:
    """Return whether a text begins with `bos`, as Llama's do unless `tokenizer_config.json` says otherwise.

    Raises:
        CheckpointError: the file is damaged.
    """
    file = folder / "tokenizer_config.json"
    added = read_json(file).get("add_bos_token", True) if file.exists() else True
    if not isinstance(added, bool):
        raise CheckpointError(f"add_bos_token must be true or false in {file}, got {added!r}")
    return added


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
    if values.get("quantization_config"):
        raise CheckpointError("quantization_config must be absent; take the checkpoint before quantisation")
    head_dim = {"head_dim": values["head_dim"]} if values.get("head_dim") else {}
    try:
        n_heads = values["num_attention_heads"]
        given = values.get("num_key_value_heads")
        n_kv_heads = n_heads if given is None else given
        sizes = {
            "vocab_size": values["vocab_size"],
            "context": values["max_position_embeddings"],
            "dim": values["hidden_size"],
            "n_layers": values["num_hidden_layers"],
            "n_heads": n_heads,
            "hidden_dim": values["intermediate_size"],
            "attention": {"type": "GQA", "n_kv_heads": n_kv_heads, **head_dim},
            "rotary": _rotary(values),
            "norm": {"type": "rmsnorm", "eps": values["rms_norm_eps"]},
            "tie_embeddings": values.get("tie_word_embeddings", False),
        }
    except KeyError as error:
        raise CheckpointError(f"config.json must give {error.args[0]}, but does not") from None
    return configured("config.json", **sizes)


def config_to_hugging_face(model: XLlama, dtype: torch.dtype, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Return the `config.json` of a Llama like `model`, with the parts that `Settings.of` knows."""
    c, settings = model.config, Settings.of(model)
    kind = c.rotary.type.rpartition(":")[2]
    scaling = None if kind == "rotary" else {"rope_type": kind, "type": kind, "factor": settings.factor}
    dtype_name = str(dtype).removeprefix("torch.")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": c.vocab_size,
        "max_position_embeddings": c.context,
        "hidden_size": c.dim,
        "intermediate_size": c.hidden_dim,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": settings.n_kv_heads,
        "head_dim": settings.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": settings.eps,
        "tie_word_embeddings": c.tie_embeddings,
        # transformers 5 reads `rope_parameters` and `dtype`; earlier ones, and other programs, what follows them.
        "rope_parameters": {"rope_theta": settings.base, **(scaling or {"rope_type": "default"})},
        "rope_theta": settings.base,
        "rope_scaling": scaling,
        "dtype": dtype_name,
        "torch_dtype": dtype_name,
        **marker_ids(tokenizer),
    }


def marker_ids(tokenizer: Tokenizer | None) -> dict[str, int | None]:
    """Return the ids of a text's begin and end, and that there is no padding token."""
    bos, eos = (None, None) if tokenizer is None else (tokenizer.bos, tokenizer.eos)
    return {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": None}


def from_hugging_face(tensors: Mapping[str, Tensor], config: XLlama.Config) -> dict[str, Tensor]:
    """Return X-Llama's state dict for the tensors of a `LlamaForCausalLM`.

    Raises:
        CheckpointError: a tensor is missing, or does not fit the config.
    """
    known = _known({name: Stored.of(tensor) for name, tensor in tensors.items()}, config)
    _, stacks = checked(known, config, NAMES)
    state = {name: torch.cat([part.read() for part in parts]) for name, parts in stacks.items()}
    if config.tie_embeddings:
        state["head.weight"] = state["embedding.weight"]
    return state


def to_hugging_face(state: Mapping[str, Tensor], config: XLlama.Config) -> dict[str, Tensor]:
    """Return the tensors of a `LlamaForCausalLM` for X-Llama's state dict: the inverse of `from_hugging_face`."""
    return {part.theirs: state[part.ours][part.rows] for part in parts_of(skeleton(config), NAMES)}


def read_json(file: Path) -> dict[str, Any]:
    """Return what a JSON file says. Raises `CheckpointError` where it is missing, or no JSON object."""
    try:
        values = parse_json(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} must hold a JSON object, got a {type(values).__name__}")
    return values


def _known(tensors: dict[str, Stored], config: XLlama.Config) -> dict[str, Stored]:
    """Leave out what transformers itself ignores: tables that old versions saved, and the head of a tied model."""
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not (name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config.tie_embeddings))
    }


def _rotary(values: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary spec, by the rules of transformers 5 (`RotaryEmbeddingConfigMixin`).

    `rope_scaling`, which earlier versions wrote, comes before `rope_parameters` where there are both, and what neither
    says is beside them.
    """
    name = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
    rope: Any = values.get(name) or {}
    malformed = CheckpointError(f"{name} must be one object of numbers and words, for all layers, got {rope!r}")
    if not isinstance(rope, dict):
        raise malformed
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "linear", "dynamic"):
        raise CheckpointError(f"rope scaling {kind!r} is not supported; known: default, linear, dynamic")
    if any(isinstance(value, dict | list) for value in rope.values()):
        raise malformed
    if (part := rope.get("partial_rotary_factor", values.get("partial_rotary_factor", 1))) != 1:
        raise CheckpointError(f"partial_rotary_factor must be 1, got {part}")
    base = rope.get("rope_theta", values.get("rope_theta", 10000.0))
    if kind == "default":
        return {"type": "rotary", "base": base}
    if "factor" not in rope:
        raise CheckpointError(f"rope scaling {kind!r} must have a factor")
    return {"type": kind, "base": base, "factor": rope["factor"]}
