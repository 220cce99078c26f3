"""`axon import`: writes somebody else's checkpoint as a model folder."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from axon_core import CheckpointError, to_json, validate
from axon_core.checkpoint import WEIGHTS, atomic_folder, claimed_folder, save_config
from axon_core.generation import PUBLISHED, published_sampling
from axon_core.text import SentencePieceTokenizer, Tokenizer
from axon_xllama.chat import MARKERS
from axon_xllama.checkpoints import hugging_face, llama2c, meta
from axon_xllama.checkpoints.layout import Names, Notice, Stored, checked
from axon_xllama.checkpoints.safetensors_files import nbytes, write_safetensors
from axon_xllama.gguf.reading import open_gguf
from axon_xllama.model import XLlama

CheckpointKind = Literal["llama2.c", "Meta", "Hugging Face", "GGUF"]
_FILES: Mapping[str, CheckpointKind] = {".bin": "llama2.c", ".gguf": "GGUF"}
ProgressCallback = Callable[[int, int], object]
"""Called with how many bytes were written just now, and how many there will be in all."""


def import_checkpoint(
    path: Path,
    out: Path,
    *,
    tokenizer: Path | None = None,
    context: int | None = None,
    progress: ProgressCallback = lambda written, total: None,
    notice: Notice = warnings.warn,
) -> XLlama:
    """Write the model folder of somebody else's Llama, weights bit for bit; return the model without its weights.

    Everything is checked before the weights are read. They pass through memory one tensor at a time.

    Args:
        path: a Hugging Face folder, one of Meta's, a `.gguf` file, or a `.bin` of llama2.c version 0; the files tell
            which it is.
        out: the folder to create; it must be new or empty.
        tokenizer: a sentencepiece model or a `tokenizer.json`; by default `tokenizer.model` beside the weights, or
            `tokenizer.json` if that is missing or the checkpoint has a chat template.
        context: the sequence length the model was trained with, instead of what the checkpoint says.
        progress: called with how far it has come.
        notice: called with what is in the folder and is not imported as it stands.

    Raises:
        CheckpointError: the checkpoint is incomplete, damaged, unsafe or not a Llama, or `out` cannot be written to.
        UsageError: `out` is not empty.
        ConfigError: the context is not a positive number.
    """
    with claimed_folder(out) as place:
        return _import(path, place, tokenizer, context, progress, notice)


def _import(
    path: Path, out: Path, tokenizer: Path | None, context: int | None, progress: ProgressCallback, notice: Notice
) -> XLlama:
    kind = _kind(path)
    if kind == "GGUF":
        config, tensors, names, words = open_gguf(path)
    else:
        words = _tokenizer(path, kind, tokenizer)
        config, tensors, names = _open(path, kind, words, context, notice)
    if words.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"the model's vocabulary must have a row for each of the tokenizer's tokens, but it has "
            f"{config.vocab_size:,} and the tokenizer {words.vocab_size:,}; give the right tokenizer with --tokenizer"
        )
    if context is not None:
        config = validate(XLlama.Config, {**config.model_dump(), "context": context})
    model, stacks = checked(tensors, config, names)
    total = nbytes(stacks)
    with atomic_folder(out) as folder:
        write_safetensors(folder / WEIGHTS, stacks, lambda written: progress(written, total))
        save_config(model, folder)
        words.save(folder)
        if kind == "Hugging Face" and (published := published_sampling(path)):
            (folder / PUBLISHED).write_text(to_json(dict(published)), encoding="utf-8")
    return model


def is_metas(path: Path) -> bool:
    """Whether the checkpoint at `path` is one of Meta's, which do not state the context.

    Raises:
        CheckpointError: there is no checkpoint of a kind that can be imported.
    """
    return _kind(path) == "Meta"


def talks_as_llama_2(path: Path) -> bool:
    """Whether the checkpoint at `path` comes with the chat format of Llama 2, which `axon chat` has without a template.

    Raises:
        CheckpointError: there is no checkpoint of a kind that can be imported, or a file of it is damaged.
    """
    return _kind(path) == "Hugging Face" and all(mark in hugging_face.chat_template(path) for mark in MARKERS)


def _kind(path: Path) -> CheckpointKind:
    """Tell by its files what kind of checkpoint is at `path`."""
    if path.is_file():
        if path.suffix not in _FILES:
            raise CheckpointError(f"{path} is a file; give the checkpoint's folder, a .gguf or a .bin of llama2.c")
        return _FILES[path.suffix]
    if not path.is_dir():
        raise CheckpointError(f"there is no {path}; give a checkpoint's folder, a .gguf or a .bin of llama2.c")
    if (path / "params.json").exists():
        return "Meta"
    if (path / "config.json").exists():
        return "Hugging Face"
    raise CheckpointError(
        f"{path} is not a Llama checkpoint: it has neither a config.json (Hugging Face) nor a params.json (Meta)"
    )


def _open(
    path: Path, kind: CheckpointKind, tokenizer: Tokenizer, context: int | None, notice: Notice
) -> tuple[XLlama.Config, dict[str, Stored], Names]:
    """Return the config, the tensors and their naming."""
    match kind:
        case "llama2.c":
            return *llama2c.open_llama2c(path), meta.NAMES
        case "Meta":
            return *meta.open_meta(path, tokenizer), meta.NAMES
        case _:
            return hugging_face.open_hugging_face(path, context, notice)


def _tokenizer(path: Path, kind: CheckpointKind, named: Path | None) -> Tokenizer:
    """Return the tokenizer that is `named`, or the one beside the weights, with the folder's settings for its use."""
    folder = path.parent if kind == "llama2.c" else path
    model, pipeline = folder / "tokenizer.model", folder / "tokenizer.json"
    own = kind == "Hugging Face"
    if named is not None:
        file = named
    elif own and pipeline.exists() and (not model.exists() or _speaks_otherwise(folder)):
        file = pipeline
    else:
        file = model
    try:
        if file.suffix == ".json":
            return hugging_face.read_pipeline(file, folder if own else file.parent)
        return SentencePieceTokenizer(
            file.read_bytes(),
            add_bos=hugging_face.add_bos(folder) if own else True,
            other_ends=hugging_face.ends(folder) if own else (),
        )
    except FileNotFoundError:
        raise CheckpointError(
            f"the tokenizer {file} is missing; give a sentencepiece model (tokenizer.model) or a tokenizer.json with "
            "--tokenizer"
        ) from None
    except (OSError, RuntimeError, ValueError) as error:
        kind_of = "tokenizer.json that can be used" if file.suffix == ".json" else "sentencepiece model of a Llama"
        raise CheckpointError(f"{file} is not a {kind_of}: {error}") from None


def _speaks_otherwise(folder: Path) -> bool:
    """Whether a folder has a chat template that is not Llama 2's: its markers are known to the tokenizer.json alone."""
    template = hugging_face.chat_template(folder)
    return bool(template) and not all(mark in template for mark in MARKERS)
