"""A Llama as a GGUF file, which llama.cpp reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import gguf
from gguf import GGMLQuantizationType

from axon_xllama import XLlama
from axon_xllama.checkpoints.hugging_face import names_of, to_hugging_face
from axon_xllama.checkpoints.layout import Settings, checkpoint_tensors, relayout

TYPES = {
    "fp32": (GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "bf16": (GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q4_0": (GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
    "q8_0": (GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}


def write_gguf(file: Path, model: XLlama, precision: str, pieces: Sequence[str] | None = None) -> None:
    """Write a float32 model; matrices in the given precision, vectors in float32, as llama.cpp's converter does.

    llama.cpp wants a vocabulary: that of `pieces`, or nameless ones; the first three are the usual markers.
    """
    kind, file_type = TYPES[precision]
    c, settings = model.config, Settings.of(model)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_file_type(file_type)
    writer.add_context_length(c.context)
    writer.add_embedding_length(c.dim)
    writer.add_block_count(c.n_layers)
    writer.add_feed_forward_length(c.hidden_dim)
    writer.add_head_count(c.n_heads)
    writer.add_head_count_kv(settings.n_kv_heads)
    writer.add_rope_dimension_count(settings.head_dim)
    writer.add_rope_freq_base(settings.base)
    writer.add_layer_norm_rms_eps(settings.eps)
    writer.add_vocab_size(c.vocab_size)

    writer.add_tokenizer_model("llama")
    markers = [("<unk>", gguf.TokenType.UNKNOWN), ("<s>", gguf.TokenType.CONTROL), ("</s>", gguf.TokenType.CONTROL)]
    names = pieces or [f"<{i}>" for i in range(c.vocab_size)]
    tokens = markers + [(name, gguf.TokenType.NORMAL) for name in names[len(markers) :]]
    writer.add_token_list([token for token, _ in tokens])
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([int(type_) for _, type_ in tokens])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)

    tensor_names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, c.n_layers)
    tensors = to_hugging_face(model.state_dict(), c)
    for part in checkpoint_tensors(model, names_of(model)):
        tensor = tensors[part.theirs]
        if part.heads is not None:  # llama.cpp rotates feature pairs (2i, 2i + 1)
            tensor = relayout(tensor, part.heads, "interleaved")
        stored = kind if tensor.ndim > 1 else GGMLQuantizationType.F32
        name = cast(str, tensor_names.get_name(part.theirs, (".weight",)))
        writer.add_tensor(name, gguf.quantize(tensor.detach().numpy(), stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
