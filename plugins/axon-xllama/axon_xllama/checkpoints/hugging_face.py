"""Folders of Hugging Face transformers, their config and tensors (`CHECKPOINT_FAMILIES`), as X-Llama's and back.

They rotate feature pairs (i, i + d/2) (layout `half`), as X-Llama does by default: rows are only stacked, not permuted.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor

from axon_core import CheckpointError, parse_json
from axon_core.text import Tokenizer
from axon_xllama.checkpoints.families import SIZES, family_named, family_of
from axon_xllama.checkpoints.layout import Names, Notice, Stored, checked, checkpoint_tensors, skeleton
from axon_xllama.checkpoints.safetensors_files import stored_in
from axon_xllama.model import XLlama

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def open_hugging_face(
    folder: Path, context: int | None, notice: Notice
) -> tuple[XLlama.Config, dict[str, Stored], Names]:
    """Return the config, the tensors and their names, of a folder that `save_pretrained` wrote.

    Args:
        folder: where it is.
        context: the sequence length, if `config.json` does not give it.
        notice: called with what is read differently from what the folder says.

    Raises:
        CheckpointError: a file is missing or damaged, or it is not a model that X-Llama can be.
    """
    values = _config_values(folder, context)
    config = config_from_hugging_face(values)
    tensors = _whole(_tensors(folder))
    if config.tie_embeddings and not _same(tensors.get(_HEAD), tensors.get(_EMBEDDING)):
        notice(
            f"tie_word_embeddings is true in {folder / 'config.json'}, but the head and the embedding differ: both are "
            "kept, as transformers does"
        )
        config = config.model_copy(update={"tie_embeddings": False})
    return config, _known(tensors, config), family_named(values["model_type"]).names(config)


def read_config(folder: Path, context: int | None) -> XLlama.Config:
    """Return the config of a folder, whose weights may be elsewhere.

    Args:
        folder: where it is.
        context: the sequence length, if `config.json` does not give it.

    Raises:
        CheckpointError: `config.json` is missing or damaged, or does not describe a model that X-Llama can be.
    """
    return config_from_hugging_face(_config_values(folder, context))


def _config_values(folder: Path, context: int | None) -> dict[str, Any]:
    values = read_json(folder / "config.json")
    if not any(name in values for name in SIZES["context"]) and context is not None:
        values["max_position_embeddings"] = context
    return values


def _tensors(folder: Path) -> dict[str, Stored]:
    """Return what the safetensors of a folder hold: one file, which takes precedence, or all that its index names."""
    if (folder / WEIGHTS).exists():
        return stored_in(folder / WEIGHTS)
    check_has_weights(str(folder), [file.name for file in folder.iterdir()])
    places = indexed(folder)
    tensors = {name: tensor for file in {*places.values()} for name, tensor in stored_in(folder / file).items()}
    if missing := sorted(places.keys() - tensors.keys()):
        raise CheckpointError(f"{folder / places[missing[0]]} must contain {missing[0]!r}, but does not")
    return tensors


def check_has_weights(source: str, files: Collection[str]) -> None:
    """Check the names of a checkpoint's files. Raises `CheckpointError` if there are no safetensors to read."""
    if WEIGHTS not in files and INDEX not in files:
        pickled = any(PurePath(file).match("pytorch_model*.bin") for file in files)
        remedy = "; convert its pytorch_model.bin to safetensors first" if pickled else ""
        raise CheckpointError(f"{source} has no weights: neither {WEIGHTS} nor {INDEX}{remedy}")


def indexed(folder: Path) -> dict[str, str]:
    """Return the tensors that the index of a folder lists, each with the name of its file there.

    Raises:
        CheckpointError: the index is missing or damaged, or names a file outside the folder.
    """
    places = read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise CheckpointError(f"{folder / INDEX} is damaged: it has no weight_map of file names")
    for name in sorted(set(places.values())):
        # By the name alone: files in a download cache are links to elsewhere, which is allowed.
        if PurePath(name).name != name or name in ("", "..") or "\\" in name:
            raise CheckpointError(f"{folder / INDEX} names {name!r}, which is not a file in that folder")
    return places


def _whole(tensors: dict[str, Stored]) -> dict[str, Stored]:
    """Name the tensors of a model that was saved without its head (`LlamaModel`) as those of the whole."""
    if any(name.startswith("model.") for name in tensors):
        return tensors
    return {name if name == _HEAD else f"model.{name}": tensor for name, tensor in tensors.items()}


def _same(head: Stored | None, embedding: Stored | None) -> bool:
    """Whether a head is the embedding, or is absent."""
    if head is None or embedding is None:
        return True
    return head.shape == embedding.shape and bool(head.read().eq(embedding.read()).all())


def config_from_hugging_face(values: Mapping[str, Any]) -> XLlama.Config:
    """Return the X-Llama config that a `config.json` describes.

    Raises:
        CheckpointError: the model is of no known family, or has a setting X-Llama does not know, such as another rope
            scaling.
    """
    return family_named(values.get("model_type")).read(values)


def names_of(model: XLlama) -> Names:
    """Return the names of the tensors of `family_of(model)`."""
    return family_of(model).names(model.config)


def config_to_hugging_face(model: XLlama, dtype: torch.dtype, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Return the `config.json` of `family_of(model)`."""
    name = str(dtype).removeprefix("torch.")
    # transformers 5 reads `dtype`; earlier ones, and other programs, `torch_dtype`.
    return {**family_of(model).write(model), "dtype": name, "torch_dtype": name, **marker_ids(tokenizer)}


def marker_ids(tokenizer: Tokenizer | None) -> dict[str, int | list[int] | None]:
    """Return the ids that begin and end a text, and that there is no padding token."""
    bos = None if tokenizer is None else tokenizer.bos
    first, *more = [None] if tokenizer is None else [tokenizer.eos, *sorted(tokenizer.ends - {tokenizer.eos})]
    ends = [token for token in (first, *more) if token is not None]
    return {"bos_token_id": bos, "eos_token_id": ends if len(ends) > 1 else first, "pad_token_id": None}


def from_hugging_face(tensors: Mapping[str, Tensor], config: XLlama.Config) -> dict[str, Tensor]:
    """Return X-Llama's state dict for the tensors of one of `CHECKPOINT_FAMILIES`.

    Raises:
        CheckpointError: a tensor is missing, or does not fit the config.
    """
    known = _known({name: Stored.of(tensor) for name, tensor in tensors.items()}, config)
    _, stacks = checked(known, config, names_of(skeleton(config)))
    state = {name: torch.cat([part.read() for part in parts]) for name, parts in stacks.items()}
    if config.tie_embeddings:
        state["head.weight"] = state["embedding.weight"]
    return state


def to_hugging_face(state: Mapping[str, Tensor], config: XLlama.Config) -> dict[str, Tensor]:
    """Return the tensors of `family_of` the model for X-Llama's state dict: the inverse of `from_hugging_face`."""
    model = skeleton(config)
    return {part.theirs: state[part.ours][part.rows] for part in checkpoint_tensors(model, names_of(model))}


def read_json(file: Path) -> dict[str, Any]:
    """Return what a JSON file says. Raises `CheckpointError` if it is missing, or not a JSON object."""
    try:
        # `model_max_length` is 10³⁰ if transformers knows none
        values = parse_json(file.read_text(encoding="utf-8-sig"), parse_int=int)
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} must contain a JSON object, got a {type(values).__name__}")
    return values


def _known(tensors: dict[str, Stored], config: XLlama.Config) -> dict[str, Stored]:
    """Leave out what transformers itself ignores: tables that old versions saved, and the head of a tied model."""
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not (name.endswith("rotary_emb.inv_freq") or (name == _HEAD and config.tie_embeddings))
    }
