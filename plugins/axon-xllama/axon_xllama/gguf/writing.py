"""`axon export --format gguf`: an X-Llama as one GGUF file, which llama.cpp runs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from axon_core import ROTARY_EMBEDDINGS, CheckpointError
from axon_core.checkpoint import atomic_file, check_weights, load_config, read_tensor, whole_weights
from axon_core.registry import import_optional
from axon_core.text import Tokenizer
from axon_core.training import pinned_model_folder
from axon_xllama.checkpoints.exporting import check_parts
from axon_xllama.checkpoints.families import family_of
from axon_xllama.checkpoints.importing import ProgressCallback
from axon_xllama.checkpoints.layout import Notice, Settings, TensorPart, checkpoint_tensors, relayout
from axon_xllama.checkpoints.safetensors_files import stored_in
from axon_xllama.gguf.vocabulary import GGUFVocabulary
from axon_xllama.model import XLlama

__all__ = ["GGUFType", "export_gguf"]

GGUFType = Literal["f32", "bf16", "q8_0"]
_ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "mistral": "llama"}
"""llama.cpp's names by those of Hugging Face."""
_ROWS = 32
"""Features that have one scale in Q8_0."""


class _Written(NamedTuple):
    """A tensor of the file."""

    name: str
    part: TensorPart
    kind: Any
    shape: tuple[int, ...]
    nbytes: int


def export_gguf(
    run: Path,
    out: Path,
    *,
    type: GGUFType = "f32",
    progress: ProgressCallback = lambda written, total: None,
    notice: Notice = warnings.warn,
) -> XLlama:
    """Write an X-Llama as a GGUF file, with its tokenizer and chat template; return the model without its weights.

    It becomes a `llama`, a `qwen2` if queries, keys and values have a bias, or a `qwen3` if query and key heads are
    normalised. Matrices are written in `type`, gains of norms in float32; Q8_0 holds 32 features in 8 bits each with
    one scale, and a matrix whose rows are not a multiple of that is written in float32. Weights pass through memory one
    tensor at a time.

    Args:
        run: a run's folder or a model's.
        out: the file to create.
        type: `f32`, `bf16` or `q8_0`.
        progress: called with how far it has come.
        notice: called with what is written otherwise than asked.

    Raises:
        CheckpointError: there is no X-Llama in `run`, llama.cpp does not compute what it does or would give other ids
            for a text, or `out` exists or cannot be written.
        UsageError: the package `gguf` is not installed.
    """
    library: Any = import_optional("gguf", "gguf")
    if out.exists():
        raise CheckpointError(f"{out} exists already; choose another name, or remove it")
    with pinned_model_folder(run) as folder:
        model = load_config(folder, XLlama)
        architecture = _architecture(model)
        vocabulary = GGUFVocabulary.of(Tokenizer.load(folder), notice).padded(model.config.vocab_size)
        check_weights(folder)
        with atomic_file(out) as draft, closing(library.GGUFWriter(draft, architecture)) as writer:
            _describe(writer, library, model, vocabulary, type, notice)
            _write(writer, library, folder, model, architecture, type, progress, notice)
    return model


def _architecture(model: XLlama) -> str:
    """Return llama.cpp's name of what the model computes. Raises `CheckpointError` if it has none."""
    check_parts(model, "gguf")
    family = family_of(model)
    name = str(family.write(model)["model_type"])
    attention = cast(Any, model.get_submodule("blocks.0.attention")).config
    if name not in _ARCHITECTURES:
        raise CheckpointError(
            f"a GGUF file is written of {', '.join(_ARCHITECTURES)}, but the model is a {name}; export it with "
            "--format hf"
        )
    if attention.bias is True:
        raise CheckpointError("a GGUF file has no bias for the attention's output")
    window = getattr(attention, "window", None)
    if window is not None and window < model.context:
        raise CheckpointError(
            f"llama.cpp ignores the attention's window of {window} tokens, which is less than the context of "
            f"{model.context}; export with --format hf"
        )
    return _ARCHITECTURES[name]


def _describe(
    writer: Any, library: Any, model: XLlama, vocabulary: GGUFVocabulary, type: GGUFType, notice: Notice
) -> None:
    c, settings = model.config, Settings.of(model)
    kinds = {"f32": "ALL_F32", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
    writer.add_file_type(library.LlamaFileType[kinds[type]])
    writer.add_context_length(model.context)
    writer.add_embedding_length(c.dim)
    writer.add_block_count(c.n_layers)
    writer.add_feed_forward_length(c.hidden_dim)
    writer.add_head_count(c.n_heads)
    writer.add_head_count_kv(settings.n_kv_heads)
    writer.add_key_length(settings.head_dim)
    writer.add_value_length(settings.head_dim)
    writer.add_rope_dimension_count(settings.head_dim)
    writer.add_rope_freq_base(settings.base)
    writer.add_layer_norm_rms_eps(settings.eps)
    writer.add_vocab_size(c.vocab_size)
    _describe_rotary(writer, library, model)
    v = vocabulary
    writer.add_tokenizer_model(v.model)
    writer.add_token_list(v.tokens)
    writer.add_token_types(v.kinds)
    if v.scores:
        writer.add_token_scores(v.scores)
        writer.add_add_space_prefix(v.add_space)
    if v.model == "gpt2":
        writer.add_tokenizer_pre(v.splitter)
        writer.add_token_merges(v.merges or v.no_merges())
    for token, add in ((v.bos, writer.add_bos_token_id), (v.eos, writer.add_eos_token_id)):
        if token is not None:
            add(token)
    if v.unknown is not None:
        writer.add_unk_token_id(v.unknown)
    places = (writer.add_eot_token_id, writer.add_eom_token_id)
    ends = sorted(v.ends - {v.eos})
    for token, add in zip(ends, places, strict=False):
        add(token)
    if more := ends[len(places) :]:
        notice(f"a GGUF file has no place for the ids {more}, which end a text too: llama.cpp may not stop at them")
    writer.add_add_bos_token(v.add_bos)
    writer.add_add_eos_token(False)
    if v.chat_template:
        writer.add_chat_template(v.chat_template)


def _describe_rotary(writer: Any, library: Any, model: XLlama) -> None:
    """Write how the rotary embedding is scaled. Raises `CheckpointError` if llama.cpp does not scale it so."""
    config = cast(Any, model.rotaries[0]).config
    match kind := ROTARY_EMBEDDINGS.entry(model.config.rotary.type).key:
        case "rotary" | "llama3":  # the latter by a tensor of factors
            return
        case "linear":
            writer.add_rope_scaling_type(library.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(config.factor)
        case "yarn":
            if not config.truncate:
                raise CheckpointError("llama.cpp rounds the ramp of yarn to whole pairs, but truncate is false")
            if config.attention_factor is not None:
                raise CheckpointError("llama.cpp has no attention_factor of yarn other than 0.1 ln(factor) + 1")
            writer.add_rope_scaling_type(library.RopeScalingType.YARN)
            writer.add_rope_scaling_factor(config.factor)
            writer.add_rope_scaling_orig_ctx_len(config.original_context or model.config.context)
            writer.add_rope_scaling_yarn_beta_fast(config.beta_fast)
            writer.add_rope_scaling_yarn_beta_slow(config.beta_slow)
        case _:
            raise CheckpointError(f"llama.cpp has no {kind} rotary embedding")


def _write(
    writer: Any,
    library: Any,
    folder: Path,
    model: XLlama,
    architecture: str,
    type: GGUFType,
    progress: ProgressCallback,
    notice: Notice,
) -> None:
    arch = library.MODEL_ARCH[architecture.upper()]
    tensors = list(_tensors(library, model, arch, type))
    if type == "q8_0" and (odd := [t.name for t in tensors if len(t.shape) > 1 and t.kind.name == "F32"]):
        notice(f"{', '.join(odd[:3])}{' …' * (len(odd) > 3)} have rows that 32 does not divide: they are in float32")
    factors = _factors(model)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.numpy().dtype, factors.nbytes)
    for tensor in tensors:
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype("float32"), tensor.nbytes, raw_dtype=tensor.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors.numpy())
    total = sum(tensor.nbytes for tensor in tensors)
    weights = whole_weights(folder)
    stored = stored_in(weights)
    permuted = architecture == "llama" and Settings.of(model).layout == "half"
    other = architecture != "llama" and Settings.of(model).layout == "interleaved"
    for tensor in tensors:
        part = tensor.part
        name = part.ours if part.ours in stored else "head.weight"
        values = read_tensor(weights, name, part.rows).float()
        if part.heads is not None and (permuted or other):
            values = relayout(values, part.heads, "interleaved" if permuted else "half")
        writer.write_tensor_data(library.quantize(values.contiguous().numpy(), tensor.kind))
        progress(tensor.nbytes, total)


def _tensors(library: Any, model: XLlama, arch: Any, type: GGUFType) -> Iterator[_Written]:
    names = library.get_tensor_name_map(arch, model.config.n_layers)
    chosen = library.GGMLQuantizationType[type.upper()]
    for part in checkpoint_tensors(model, family_of(model).names(model.config)):
        base, _, suffix = part.theirs.rpartition(".")
        name = names.get_name(base)
        if name is None:
            raise CheckpointError(f"a GGUF file of llama.cpp has no place for {part.theirs}")
        kind = chosen if len(part.shape) > 1 else library.GGMLQuantizationType.F32
        if kind.name == "Q8_0" and torch.Size(part.shape)[-1] % _ROWS:
            kind = library.GGMLQuantizationType.F32
        block, size = library.GGML_QUANT_SIZES[kind]
        numbers = torch.Size(part.shape).numel()
        yield _Written(f"{name}.{suffix}", part, kind, part.shape, numbers // block * size)


def _factors(model: XLlama) -> Tensor | None:
    """Return by what the frequencies of `llama3` are divided, feature pair by feature pair."""
    if ROTARY_EMBEDDINGS.entry(model.config.rotary.type).key != "llama3":
        return None
    rotary = type(model.rotaries[0])(model.rotaries[0].config)  # with numbers, which a model without weights lacks
    rotary = cast(Any, rotary)
    plain = rotary.config.base ** (-torch.arange(0, rotary.config.dim, 2, dtype=torch.float64) / rotary.config.dim)
    return (plain / rotary.frequencies.double()).float()
