"""GGUF files that X-Llama does not compute, or that are malformed: refused by key, value and remedy."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from axon_core import CheckpointError
from axon_core.text import ByteTokenizer, Tokenizer
from axon_xllama.checkpoints import import_checkpoint
from axon_xllama.gguf.writing import export_gguf

YARN = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 2.0}


@pytest.fixture
def exported(saved, tmp_path):
    """A small Llama with 16 features in a head, as `model.gguf`."""
    saved(ByteTokenizer())
    export_gguf(tmp_path / "run", tmp_path / "model.gguf")
    return tmp_path / "model.gguf"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"llama.rope.dimension_count": 8},
            "rope.dimension_count must be 16, .* all features of a head are rotated, got 8",
        ),
        ({"llama.attention.value_length": 8}, "attention.value_length must be 16, .* as many features, got 8"),
        (
            {"llama.expert_count": 8},
            "llama.expert_count is 8, but a mixture of experts is not read .* Hugging Face folder",
        ),
        ({"llama.block_count": "2"}, "llama.block_count must be a whole number from 1 to 65,536, got '2'; convert"),
        ({"llama.block_count": 0}, "llama.block_count must be a whole number from 1 to 65,536, got 0"),
        ({"llama.block_count": 3}, "the checkpoint has no tensor 'blk.2.attn_q.weight'"),
        ({"llama.block_count": None}, "the GGUF file has no llama.block_count; convert"),
        ({"llama.embedding_length": "big"}, "llama.embedding_length must be a whole number from 1 on, got 'big'"),
        ({"llama.embedding_length": 96}, r"shape of 'token_embd.weight' must be \(258, 96\)"),
        (
            {"llama.embedding_length": 66, "llama.attention.key_length": None},
            "llama.embedding_length must be a multiple of llama.attention.head_count, 4, got 66",
        ),
        ({"llama.context_length": None}, "the GGUF file has no llama.context_length"),
        ({"llama.attention.head_count": [4, 4]}, r"head_count must be a whole number from 1 to 65,536, got \[4, 4\]"),
        ({"llama.attention.head_count_kv": 3}, "head_count_kv must divide llama.attention.head_count, 4, got 3"),
        ({"llama.attention.layer_norm_rms_epsilon": None}, "has no llama.attention.layer_norm_rms_epsilon"),
        ({"llama.attention.layer_norm_rms_epsilon": "small"}, "epsilon must be a number of at least 0, got 'small'"),
        ({"llama.feed_forward_length": 32}, r"shape of 'blk.0.ffn_gate.weight' must be \(32, 64\)"),
        ({"llama.rope.freq_base": "large"}, "llama.rope.freq_base must be a number above 0, got 'large'; convert"),
        ({"llama.rope.freq_base": float("nan")}, "llama.rope.freq_base must be a number above 0, got nan"),
        ({"llama.rope.scaling.type": 3}, "llama.rope.scaling.type must be a text, got 3"),
        ({"llama.rope.scaling.type": "longrope"}, "scaling.type must be none, linear or yarn, got 'longrope'"),
        ({"llama.rope.scaling.type": "linear"}, "scaling.type is 'linear', but llama.rope.scaling.factor is missing"),
        ({"llama.rope.scaling.type": "yarn"}, "scaling.type is 'yarn', but llama.rope.scaling.factor is missing"),
        (
            {**YARN, "llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": "2"},
            "factor must be a number above 0",
        ),
        ({**YARN, "llama.rope.scaling.attn_factor": "2"}, "scaling.attn_factor must be a number above 0, got '2'"),
        ({**YARN, "llama.rope.scaling.factor": -2.0}, "llama.rope.scaling.factor must be a number above 0, got -2.0"),
        ({**YARN, "llama.rope.scaling.factor": 0.5}, "scaling.factor must be a number of at least 1, got 0.5"),
        ({"tokenizer.ggml.model": "t5"}, "model must be 'llama' .* or 'gpt2' .*, got 't5', a unigram model"),
        ({"tokenizer.ggml.model": "bert"}, "model must be 'llama' .* or 'gpt2' .*, got 'bert', WordPiece"),
        ({"tokenizer.ggml.model": 3}, "tokenizer.ggml.model must be a text, got 3"),
        ({"tokenizer.ggml.tokens": None}, "the GGUF file has no tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.tokens": ["a"] * 258}, "tokens must be different texts, but one is there twice"),
        ({"tokenizer.ggml.token_type": [1]}, "token_type must have one entry for each of the 258 tokens, got 1"),
        ({"tokenizer.ggml.merges": None}, "the GGUF file has no tokenizer.ggml.merges"),
        ({"tokenizer.ggml.merges": [1, 2]}, r"merges must be a list of texts, got \[1, 2\]; convert"),
        ({"tokenizer.ggml.merges": "a b"}, "merges must be a list of texts, got 'a b'"),
        ({"tokenizer.ggml.merges": ["zz qq"]}, "merges has 'zz qq', which is not two tokens whose union is one"),
        ({"tokenizer.ggml.merges": ["a b"]}, "merges has 'a b', which is not two tokens"),
        ({"tokenizer.ggml.pre": "tekken"}, "tokenizer.ggml.pre is 'tekken', known are gpt-2, smollm, llama-bpe"),
        ({"tokenizer.ggml.bos_token_id": "<s>"}, "bos_token_id must be a whole number from 0 to 257, got '<s>'"),
        ({"tokenizer.ggml.eos_token_id": [2, 3]}, r"eos_token_id must be a whole number from 0 to 257, got \[2, 3\]"),
        ({"tokenizer.ggml.eot_token_id": 258}, "eot_token_id must be a whole number from 0 to 257, got 258"),
        ({"tokenizer.ggml.add_bos_token": "yes"}, "add_bos_token must be true or false, got 'yes'"),
        (
            {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": None},
            "bos_token_id is missing, but a text begins with it",
        ),
        ({"tokenizer.chat_template": 3}, "tokenizer.chat_template must be a text, got 3"),
    ],
    ids=str,
)
def test_keys(exported, changed, tmp_path, keys, message):
    with pytest.raises(CheckpointError, match=message):
        import_checkpoint(changed(keys), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("share", [0.0001, 0.001, 0.02, 0.5, 0.99])
def test_truncated_files(exported, tmp_path, share):
    os.truncate(exported, int(share * exported.stat().st_size))
    with pytest.raises(CheckpointError, match=r"model.gguf is damaged or truncated; copy it again$"):
        import_checkpoint(exported, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_files_of_other_kinds(exported, tmp_path):
    whole = exported.read_bytes()
    for message, content in {
        "is not a GGUF file: it does not begin with these letters": b"not one at all" * 10,
        "must be a GGUF file of version 2 or 3, got 1; convert": whole[:4] + b"\1\0\0\0" + whole[8:],
        "general.architecture must be llama, qwen2, qwen3, got 'bloom'": whole.replace(b"llama", b"bloom", 1),
    }.items():
        exported.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            import_checkpoint(exported, tmp_path / "ours")


def test_tensors(exported, changed, tmp_path):
    ones = np.ones((64, 64), np.float32)
    for name, given, message in (
        ("blk.1.ffn_down.weight", None, "the checkpoint has no tensor 'blk.1.ffn_down.weight'"),
        ("blk.0.attn_rot.weight", (ones, None), "has a tensor 'blk.0.attn_rot.weight', which is not part of a Llama"),
        ("blk.0.attn_q.weight", (ones.astype(np.int8), None), "'blk.0.attn_q.weight' .* is of type I8, which cannot"),
        ("blk.0.attn_q.weight", (ones[:32], None), r"shape of 'blk.0.attn_q.weight' must be \(64, 64\).*\(32, 64\)"),
        ("rope_freqs.weight", (ones[0], None), "rope_freqs.weight must be 8 numbers in F32, half of a head, got 64"),
    ):
        with pytest.raises(CheckpointError, match=message):
            import_checkpoint(changed({}, {name: given}), tmp_path / "ours")


def test_a_tensor_of_an_unknown_type_is_named(exported, tmp_path):
    whole = exported.read_bytes()
    place = whole.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight") + 4 + 2 * 8  # after the shape
    exported.write_bytes(whole[:place] + b"\x63\0\0\0" + whole[place + 4 :])
    with pytest.raises(
        CheckpointError, match=r"'blk.0.attn_q.weight' in .*model.gguf is of type 99, which is not known"
    ):
        import_checkpoint(exported, tmp_path / "ours")


FACTORS = {
    "constant below one": [0.5] * 8,
    "not finite": [1.0] * 7 + [float("nan")],
    "falling": [8.0, 4.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0],
    "longrope's": [1.0, 1.1, 1.3, 2.0, 4.0, 4.5, 5.0, 8.0],
}


@pytest.mark.parametrize("factors", FACTORS)
def test_factors_that_llama3_does_not_have(exported, changed, tmp_path, factors):
    tensor = (np.array(FACTORS[factors], np.float32), None)
    with pytest.raises(CheckpointError, match=r"rope_freqs.weight holds factors that llama3's scaling does not give"):
        import_checkpoint(changed({}, {"rope_freqs.weight": tensor}), tmp_path / "ours")


def test_two_scalings(exported, changed, tmp_path):
    tensor: Any = (np.ones(8, np.float32), None)
    with pytest.raises(CheckpointError, match=r"must have no llama.rope.scaling.type 'yarn': both scale"):
        import_checkpoint(changed(YARN, {"rope_freqs.weight": tensor}), tmp_path / "ours")


def test_llama_cpps_defaults(exported, changed, tmp_path):
    source = changed({"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_bos_token": None})
    import_checkpoint(source, tmp_path / "llama-bpe")
    assert Tokenizer.load(tmp_path / "llama-bpe").add_bos is True
    source = changed({"tokenizer.ggml.add_bos_token": None})
    import_checkpoint(source, tmp_path / "gpt-2")
    assert Tokenizer.load(tmp_path / "gpt-2").add_bos is False
