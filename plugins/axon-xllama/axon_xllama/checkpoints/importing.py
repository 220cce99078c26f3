"""`axon import`: writes somebody else's checkpoint as a model folder."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Literal

import torch

from axon_core import CheckpointError, UsageError, to_json, validate
from axon_core.checkpoint import WEIGHTS, atomic_folder, claimed_folder, save_config
from axon_core.generation import PUBLISHED, published_settings
from axon_core.text import SentencePieceTokenizer, Tokenizer
from axon_xllama.chat import MARKERS
from axon_xllama.checkpoints import hugging_face, llama2c, meta, tokenizer_settings
from axon_xllama.checkpoints.layout import Names, Notice, Stored, checked
from axon_xllama.checkpoints.safetensors_files import nbytes, read_ahead, write_safetensors
from axon_xllama.model import XLlama

CheckpointKind = Literal["llama2.c", "Meta", "Hugging Face", "GGUF"]
_FILES: Mapping[str, CheckpointKind] = {".bin": "llama2.c", ".gguf": "GGUF"}
_READERS = 2
"""Threads that read and dequantise tensors: each holds one."""
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
    """Write the model folder of somebody else's Llama; return the model without its weights.

    Weights are copied bit for bit, except quantised ones of a GGUF file, which become float32. Everything is checked
    before they are read. They pass through memory one tensor at a time.

    Args:
        path: a Hugging Face folder, one of Meta's, a `.gguf` file, or a `.bin` of llama2.c version 0; the files tell
            which it is.
        out: the folder to create; it must be new or empty.
        tokenizer: a sentencepiece model or a `tokenizer.json`; by default `tokenizer.model` beside the weights, or
            `tokenizer.json` if that is missing or the checkpoint has a chat template. A GGUF file has its own inside.
        context: the sequence length the model was trained with, instead of what the checkpoint says.
        progress: called with how far it has come.
        notice: called with what is in the folder and is not imported as it stands.

    Raises:
        CheckpointError: the checkpoint is incomplete, damaged, unsafe or not a Llama, or `out` cannot be written to.
        UsageError: `out` is not empty, or a tokenizer is given beside a GGUF file.
        ConfigError: the context is not a positive number.
    """
    with claimed_folder(out) as place:
        return import_into(place, path, tokenizer, context, progress, notice)


def import_into(
    out: Path, path: Path, tokenizer: Path | None, context: int | None, progress: ProgressCallback, notice: Notice
) -> XLlama:
    """Do what `import_checkpoint` does, for a folder that the caller has claimed (`claimed_folder`).

    Raises:
        CheckpointError: the checkpoint is incomplete, damaged, unsafe or not a Llama, or `out` cannot be written to.
        UsageError: a tokenizer is given beside a GGUF file.
        ConfigError: the context is not a positive number.
    """
    model, stacks, words = _opened(path, tokenizer, context, notice)
    published, wrong = published_settings(path) if _kind(path) == "Hugging Face" else ({}, [])
    for sentence in wrong:
        notice(sentence)
    total = nbytes(stacks)
    with atomic_folder(out) as folder:
        write_safetensors(folder / WEIGHTS, stacks, lambda written: progress(written, total))
        save_config(model, folder)
        words.save(folder)
        if published:
            (folder / PUBLISHED).write_text(to_json(published), encoding="utf-8")
    return model


def load_checkpoint(
    path: Path, *, tokenizer: Path | None = None, context: int | None = None, notice: Notice = warnings.warn
) -> tuple[XLlama, Tokenizer]:
    """Return somebody else's Llama and its tokenizer, without a folder in between.

    Everything is checked before weights are read. They take the memory of the model, and of a few of its tensors.

    Args:
        path: as for `import_checkpoint`.
        tokenizer: as for `import_checkpoint`.
        context: as for `import_checkpoint`.
        notice: called with what is in the checkpoint and is not taken as it stands.

    Raises:
        CheckpointError: the checkpoint is incomplete, damaged, unsafe or not a Llama.
        UsageError: a tokenizer is given beside a GGUF file.
        ConfigError: the context is not a positive number.
    """
    model, stacks, words = _opened(path, tokenizer, context, notice)
    with closing(read_ahead((part for parts in stacks.values() for part in parts), _READERS)) as read:
        for name, parts in stacks.items():
            rows = [next(read) for _ in parts]
            tensor = rows[0].clone() if len(rows) == 1 else torch.cat(rows)
            model.load_state_dict({name: tensor}, strict=False, assign=True)
            del rows  # before the next are read
    if model.config.tie_embeddings:
        model.head.weight = model.embedding.weight
    return model.eval(), words


def _opened(
    path: Path, tokenizer: Path | None, context: int | None, notice: Notice
) -> tuple[XLlama, dict[str, list[Stored]], Tokenizer]:
    """Return the model without its weights, the parts of its tensors, and the tokenizer."""
    kind = _kind(path)
    if kind == "GGUF":
        from axon_xllama.gguf.reading import open_gguf  # which imports this package

        if tokenizer is not None:
            raise UsageError(f"a GGUF file has its tokenizer inside; leave out --tokenizer, got {tokenizer}")
        config, tensors, names, words = open_gguf(path)
    else:
        words = _tokenizer(path, kind, tokenizer)
        config, tensors, names = _open(path, kind, words, context, notice)
    _check_rows(config, words)
    if context is not None:
        config = validate(XLlama.Config, {**config.model_dump(), "context": context})
    return *checked(tensors, config, names), words


def check_settings(folder: Path, tokenizer: Path | None = None, context: int | None = None) -> None:
    """Check the files beside the weights of a Hugging Face folder, whose weights need not be there yet.

    Args:
        folder: where they are.
        tokenizer: as for `import_checkpoint`.
        context: as for `import_checkpoint`.

    Raises:
        CheckpointError: a file is missing or damaged, it is not a model that X-Llama can be, or its tokenizer cannot be
            used.
    """
    tokenizer_settings.chat_template(folder)
    _check_rows(hugging_face.read_config(folder, context), _tokenizer(folder, "Hugging Face", tokenizer))


def _check_rows(config: XLlama.Config, words: Tokenizer) -> None:
    if words.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"the model's vocabulary must have a row for each of the tokenizer's tokens, but it has "
            f"{config.vocab_size:,} and the tokenizer {words.vocab_size:,}; give the right tokenizer with --tokenizer"
        )


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
    return _kind(path) == "Hugging Face" and all(mark in tokenizer_settings.chat_template(path) for mark in MARKERS)


def _kind(path: Path) -> CheckpointKind:
    """Tell by its files what kind of checkpoint is at `path`."""
    if path.is_file():
        if path.suffix not in _FILES:
            raise CheckpointError(f"{path} is a file; give the checkpoint's folder, a .gguf or a .bin of llama2.c")
        return _FILES[path.suffix]
    if not path.is_dir():
        raise CheckpointError(
            f"there is neither a file nor a folder {path} here; give a checkpoint's folder, a .gguf or a .bin of "
            "llama2.c"
        )
    if (path / "params.json").exists():
        return "Meta"
    if (path / "config.json").exists():
        return "Hugging Face"
    if files := sorted(path.glob("*.gguf")):
        raise CheckpointError(f"{path} is a folder of GGUF files; give one of them, such as {files[0]}")
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
            return tokenizer_settings.read_pipeline(file, folder if own else file.parent)
        return SentencePieceTokenizer(
            file.read_bytes(),
            add_bos=tokenizer_settings.add_bos(folder) if own else True,
            other_ends=tokenizer_settings.ends(folder) if own else (),
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
    template = tokenizer_settings.chat_template(folder)
    return bool(template) and not all(mark in template for mark in MARKERS)
