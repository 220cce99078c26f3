"""`axon export`: writes an X-Llama as a checkpoint that other programs load."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from axon_core import NORMS, ROTARY_EMBEDDINGS, CheckpointError, to_json
from axon_core.checkpoint import (
    WEIGHTS,
    atomic_folder,
    check_weights,
    claimed_folder,
    load_config,
    read_tensor,
    whole_weights,
)
from axon_core.generation import published_settings
from axon_core.interfaces import Layout
from axon_core.registry import Spec
from axon_core.text import PipelineTokenizer, SentencePieceTokenizer, Tokenizer
from axon_core.training import pinned_model_folder
from axon_xllama.checkpoints import hugging_face, meta
from axon_xllama.checkpoints.families import LlamaFamily, family_of
from axon_xllama.checkpoints.importing import ProgressCallback
from axon_xllama.checkpoints.layout import Notice, Settings, Stored, TensorPart, checkpoint_tensors, relayout
from axon_xllama.checkpoints.rope import SCALINGS
from axon_xllama.checkpoints.safetensors_files import nbytes, stored_in, write_safetensors
from axon_xllama.checkpoints.tokenizer_files import InexpressibleError, tokenizer_files
from axon_xllama.layers import NO_ROTARY
from axon_xllama.model import XLlama

Format = Literal["hf", "meta"]
"""What `export_checkpoint` writes: a folder."""

_RMS_NORM = "axon-rmsnorm:rmsnorm"
_LAYOUTS: dict[Format, Layout] = {"hf": "half", "meta": "interleaved"}
_SCALED = tuple(scaling.rotary for scaling in SCALINGS.values())
_ROTARIES = {"hf": _SCALED, "gguf": _SCALED, "meta": (SCALINGS["default"].rotary,)}


def export_checkpoint(
    run: Path,
    out: Path,
    *,
    format: Format,
    progress: ProgressCallback = lambda written, total: None,
    notice: Notice = warnings.warn,
) -> XLlama:
    """Write an X-Llama for other programs, weights bit for bit; return the model without its weights.

    `hf` is what `transformers.AutoModelForCausalLM.from_pretrained` loads: the family of `CHECKPOINT_FAMILIES` that
    computes what the model does, such as a Qwen3 where every query and key head is normalised, a Qwen2 with its biases,
    a Mistral, a Mixtral, or else a Llama; multi-head attention has as many key/value heads as heads. Its weights pass
    through memory one tensor at a time. With its `tokenizer.json`, `AutoTokenizer` gives the ids that Axon's tokenizer
    gives.

    `meta` is Meta's own layout, in one file, whose weights are in memory all at once. If a format rotates features in a
    different order from the model, the rows of queries and keys are permuted. A sentencepiece model is copied along.

    Args:
        run: a run's folder or a model's.
        out: the folder to create; it must be new or empty.
        format: `hf` or `meta`.
        progress: called with how far it has come.
        notice: called with what the format has no place for.

    Raises:
        CheckpointError: there is no X-Llama in `run`, it has a part the format does not know, or `out`
            cannot be written to.
        UsageError: `out` is not empty.
    """
    with claimed_folder(out) as place, pinned_model_folder(run) as folder:
        return _export(folder, place, format, progress, notice)


def _export(folder: Path, out: Path, format: Format, progress: ProgressCallback, notice: Notice) -> XLlama:
    layout = _LAYOUTS[format]
    model = load_config(folder, XLlama)
    check_parts(model, format)
    names = meta.NAMES if format == "meta" else hugging_face.names_of(model)
    weights = whole_weights(folder)
    stored = stored_in(weights)
    permuted = layout if Settings.of(model).layout != layout else None
    parts = {part.theirs: _piece(weights, part, stored, permuted) for part in checkpoint_tensors(model, names)}
    tokenizer = Tokenizer.load(folder)
    check_weights(folder)
    total = nbytes({name: [part] for name, part in parts.items()})

    def advance(written: int) -> None:
        progress(written, total)

    with atomic_folder(out) as new:
        if format == "hf":
            write_safetensors(new / WEIGHTS, {name: [part] for name, part in parts.items()}, advance)
            _describe(new, model, parts, tokenizer, published_settings(folder)[0], notice)
        else:
            tensors: dict[str, Tensor] = {}
            for name, part in parts.items():
                tensors[name] = part.read()
                advance(tensors[name].nbytes)
            if model.config.tie_embeddings:  # which Meta's layout cannot express
                tensors["output.weight"] = tensors["tok_embeddings.weight"]
            meta.write_folder(new, model, tensors)
            if not isinstance(tokenizer, SentencePieceTokenizer):
                notice(f"Meta's layout cannot store a {tokenizer.type} tokenizer: other programs get only ids")
        if isinstance(tokenizer, SentencePieceTokenizer):
            shutil.copyfile(folder / "tokenizer.model", new / "tokenizer.model")
    return model


def _describe(
    folder: Path,
    model: XLlama,
    parts: dict[str, Stored],
    tokenizer: Tokenizer,
    published: Mapping[str, Any],
    notice: Notice,
) -> None:
    """Write the JSON files of a Hugging Face folder."""
    dtype = parts["model.embed_tokens.weight"].dtype
    files: dict[str, dict[str, Any]] = {
        "config.json": hugging_face.config_to_hugging_face(model, dtype, tokenizer),
        "generation_config.json": {**hugging_face.marker_ids(tokenizer), **_sampling(published)},
    }
    try:
        files |= tokenizer_files(tokenizer, model.config.context)
    except InexpressibleError as error:
        notice(
            f"the folder has no tokenizer.json, because {error}: transformers may give other ids for the same text, so "
            "encode it with Axon's tokenizer and pass the ids"
        )
        files["tokenizer_config.json"] = {"add_bos_token": tokenizer.add_bos}
    for name, values in files.items():
        (folder / name).write_text(to_json(values, indent=2), encoding="utf-8")
    if isinstance(tokenizer, PipelineTokenizer):
        (folder / "tokenizer.json").write_bytes(tokenizer.pipeline)
        if tokenizer.chat_template:
            (folder / "chat_template.jinja").write_text(tokenizer.chat_template, encoding="utf-8")


def _sampling(published: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of sampling as transformers reads them: without `do_sample` it ignores all but the penalty.

    Greedy decoding has no temperature and no filters there.
    """
    if published.get("do_sample") is False or published.get("temperature") == 0:
        kept = {name: value for name, value in published.items() if name == "repetition_penalty"}
        return {"do_sample": False, **kept}
    draws = any(name != "repetition_penalty" for name in published)
    return {**({"do_sample": True} if draws else {}), **published}


def check_parts(model: XLlama, format: str) -> None:
    """Check that the model computes what a Llama does; that it has the same tensors, `checkpoint_tensors` checks.

    Parts are recognised by who offers them: a part of another plugin may have the same name and tensors, but compute
    something else.

    Args:
        model: which is to be written.
        format: `hf`, `meta` or `gguf`.

    Raises:
        CheckpointError: a part or setting has no place in the format.
    """
    rotaries = _ROTARIES[format]
    if type(model) is not XLlama:  # a model from elsewhere may be derived from it
        raise CheckpointError(f"the model must be an XLlama for the format {format!r}, got a {type(model).__name__}")
    c = model.config
    if c.rotary.type == NO_ROTARY or not model.rotaries:
        raise CheckpointError(
            f"the rotary embedding must be {' or '.join(rotaries)} for the format {format!r}, got none"
        )
    qk_norm = Spec.of(given) if (given := c.attention.options.get("qk_norm")) else None
    for registry, spec, known in (
        (ROTARY_EMBEDDINGS, c.rotary, rotaries),
        (NORMS, c.norm, (_RMS_NORM,)),
        *([(NORMS, qk_norm, (_RMS_NORM,))] if qk_norm else []),
    ):
        if (found := registry.entry(spec.type).qualified) not in known:
            raise CheckpointError(
                f"the {registry.name} must be {' or '.join(known)} for the format {format!r}, got {found}"
            )
    for norm in (c.norm, qk_norm):
        if norm and (share := norm.options.get("partial", 1)) != 1:
            raise CheckpointError(f"the norm's partial must be 1 in a Llama, got {share}")
    if format != "meta":
        family_of(model)
    elif reason := LlamaFamily().misfit(model):
        raise CheckpointError(f"the model must be a Llama for the format 'meta', where {reason}")
    settings = Settings.of(model)
    if settings.qk_eps not in (None, settings.eps):
        raise CheckpointError(
            f"the ε of qk_norm must be that of the norm for the format {format!r}, which has one ε, got "
            f"{settings.qk_eps} and {settings.eps}"
        )
    if ROTARY_EMBEDDINGS.entry(c.rotary.type).qualified == "axon-roformer:dynamic" and settings.head_dim == 2:
        raise CheckpointError(
            "head_dim must be above 2 for a dynamic rotary embedding: transformers divides by head_dim - 2"
        )
    if format == "meta" and (head_dim := settings.head_dim) * c.n_heads != c.dim:
        raise CheckpointError(f"head_dim must be dim / n_heads for the format 'meta', got {head_dim}")


def _piece(file: Path, part: TensorPart, stored: dict[str, Stored], layout: Layout | None) -> Stored:
    """Return a part of one of X-Llama's tensors, its rows permuted to `layout` where one is given."""
    name = part.ours if part.ours in stored else "head.weight"  # one of the two names of tied weights is kept
    piece = Stored(part.shape, stored[name].dtype, partial(read_tensor, file, name, part.rows))
    if layout is None or part.heads is None:
        return piece
    heads = part.heads
    return replace(piece, read=lambda: relayout(piece.read(), heads, layout))
