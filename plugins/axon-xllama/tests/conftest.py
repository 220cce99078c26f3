"""Llama checkpoints in the formats of other projects, written by other code than Axon's."""

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from axon_core.text import SentencePieceTokenizer, Tokenizer
from axon_xllama import XLlama

VOCAB = 400
SIZES = {"context": 64, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 96}


def train_words(folder: Path, vocab_size: int) -> Path:
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))[:30_000]
    SentencePieceTokenizer.train(text, SentencePieceTokenizer.Config(vocab_size=vocab_size)).save(folder)
    return folder / "tokenizer.model"


@pytest.fixture(scope="session")
def words(tmp_path_factory) -> Path:
    """A sentencepiece model with 400 pieces."""
    return train_words(tmp_path_factory.mktemp("words"), VOCAB)


@pytest.fixture
def more_words(tmp_path) -> Path:
    """A sentencepiece model with 450 pieces."""
    return train_words(tmp_path / "more", 450)


@pytest.fixture
def llama():
    """Return a function that makes a `LlamaForCausalLM` with random weights."""

    def make(kv_heads=2, *, tied=False, dtype=torch.float32, **changes) -> LlamaForCausalLM:
        torch.manual_seed(0)
        config = {
            "vocab_size": VOCAB,
            "hidden_size": 64,
            "intermediate_size": 112,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": kv_heads,
            "max_position_embeddings": 256,
            "tie_word_embeddings": tied,
            "initializer_range": 0.1,
            "rms_norm_eps": 1e-5,
        }
        return LlamaForCausalLM(LlamaConfig(**config | changes)).to(dtype).eval()

    return make


@pytest.fixture
def hf_folder(tmp_path, words):
    """Return a function that writes what `save_pretrained` does, and the tokenizer."""

    def write(model: LlamaForCausalLM, name: str = "hf", **options) -> Path:
        model.save_pretrained(tmp_path / name, **options)
        (tmp_path / name / "tokenizer.model").write_bytes(words.read_bytes())
        return tmp_path / name

    return write


@pytest.fixture
def meta_folder(tmp_path, words):
    """Return a function that writes a `LlamaForCausalLM` as Meta hands out its models, in several shards."""

    def write(model: LlamaForCausalLM, shards: int = 1, by_tokens: bool = False, **params) -> Path:
        folder = tmp_path / "meta"
        folder.mkdir()
        tensors = in_metas_layout(model)
        columns = {"wo", "w2"} if by_tokens else {"wo", "w2", "tok_embeddings"}
        for i in range(shards):
            shard = {"rope.freqs": torch.ones(8)}
            for name, tensor in tensors.items():
                axis = int(name.split(".")[-2] in columns)
                shard[name] = (tensor if tensor.dim() == 1 else tensor.chunk(shards, axis)[i]).clone()
            torch.save(shard, folder / f"consolidated.{i:02}.pth")
        c = model.config
        facts = {
            "dim": c.hidden_size,
            "multiple_of": 16,
            "n_heads": c.num_attention_heads,
            "n_layers": c.num_hidden_layers,
            "norm_eps": c.rms_norm_eps,
            "vocab_size": -1,
        }
        if c.num_key_value_heads != c.num_attention_heads:
            facts["n_kv_heads"] = c.num_key_value_heads
        (folder / "params.json").write_text(json.dumps(facts | params))
        (folder / "tokenizer.model").write_bytes(words.read_bytes())
        return folder

    return write


@pytest.fixture
def llama2c_file(tmp_path, words):
    """Return a function that writes a `LlamaForCausalLM` as llama2.c's first exporter did."""

    def write(model: LlamaForCausalLM) -> Path:
        c, tensors = model.config, in_metas_layout(model)
        head_dim = c.hidden_size // c.num_attention_heads
        angles = torch.outer(
            torch.arange(c.max_position_embeddings), 10000.0 ** -(torch.arange(0, head_dim, 2) / head_dim)
        )
        file = tmp_path / "model.bin"
        with file.open("wb") as stream:
            vocab = c.vocab_size if c.tie_word_embeddings else -c.vocab_size
            sizes = (c.hidden_size, c.intermediate_size, c.num_hidden_layers, c.num_attention_heads)
            stream.write(struct.pack("iiiiiii", *sizes, c.num_key_value_heads, vocab, c.max_position_embeddings))

            def put(tensor: torch.Tensor) -> None:
                stream.write(tensor.detach().float().numpy().tobytes())

            put(tensors["tok_embeddings.weight"])
            for kind in (
                *("attention_norm", "attention.wq", "attention.wk", "attention.wv", "attention.wo"),
                *("ffn_norm", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
            ):
                for layer in range(c.num_hidden_layers):
                    put(tensors[f"layers.{layer}.{kind}.weight"])
            put(tensors["norm.weight"])
            put(angles.cos())
            put(angles.sin())
            if not c.tie_word_embeddings:
                put(tensors["output.weight"])
        (tmp_path / "tokenizer.model").write_bytes(words.read_bytes())
        return file

    return write


def in_metas_layout(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    """Name the tensors as Meta does; rows of queries and keys go from (i, i + r/2) to (2i, 2i + 1) as pairs."""
    c = model.config
    names = {
        "self_attn.q_proj": "attention.wq",
        "self_attn.k_proj": "attention.wk",
        "self_attn.v_proj": "attention.wv",
        "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.down_proj": "feed_forward.w2",
        "mlp.up_proj": "feed_forward.w3",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "model.embed_tokens": "tok_embeddings",
        "model.norm": "norm",
        "lm_head": "output",
        "model.layers": "layers",
    }
    tensors = {}
    for name, tensor in model.state_dict().items():
        for theirs, metas in names.items():
            name = name.replace(theirs, metas)
        if ".wq." in name or ".wk." in name:
            heads = c.num_attention_heads if ".wq." in name else c.num_key_value_heads
            r = tensor.shape[0] // heads
            order = [head * r + i + half * r // 2 for head in range(heads) for i in range(r // 2) for half in (0, 1)]
            tensor = tensor[order]
        tensors[name] = tensor
    return tensors


@pytest.fixture
def saved(tmp_path):
    """Return a function that saves a model with random weights, gains of norms included."""

    def make(tokenizer: Tokenizer, more: int = 0, **changes: Any) -> XLlama:
        torch.manual_seed(0)
        model = XLlama.build(**{"vocab_size": tokenizer.vocab_size + more, **SIZES, **changes})
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape)
                parameter.copy_(1 + 0.3 * noise if parameter.dim() == 1 else 0.15 * noise)
        model.save(tmp_path / "run", tokenizer)
        return model.eval()

    return make


@pytest.fixture
def changed(tmp_path):
    """Return a function that copies `model.gguf` to `changed.gguf` with other keys and tensors; None leaves one out."""
    kinds = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING", list: "ARRAY"}

    def change(keys: dict[str, Any], tensors: dict[str, tuple[np.ndarray, Any] | None] | None = None) -> Path:
        reader, out = gguf.GGUFReader(tmp_path / "model.gguf"), tmp_path / "changed.gguf"
        values = {name: (field.contents(), field.types[0]) for name, field in reader.fields.items()}
        values |= {name: (new, gguf.GGUFValueType[kinds.get(type(new), "STRING")]) for name, new in keys.items()}
        writer = gguf.GGUFWriter(out, str(values.pop("general.architecture")[0]))
        for name, (value, kind) in values.items():
            if value is None or name.startswith("GGUF."):
                continue
            if kind == gguf.GGUFValueType.ARRAY:
                writer.add_array(name, value)
            else:
                writer.add_key_value(name, value, kind)
        data = {tensor.name: (np.array(tensor.data), tensor.tensor_type) for tensor in reader.tensors}
        for name, given in (data | (tensors or {})).items():
            if given is not None:
                writer.add_tensor(name, given[0], raw_dtype=given[1])
        for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
            step()
        writer.close()
        return out

    return change
