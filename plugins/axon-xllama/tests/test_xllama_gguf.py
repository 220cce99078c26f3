"""GGUF files: what is written is read again, bit for bit and id for id, and llama.cpp computes the same where it is."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers

from axon_core import CheckpointError
from axon_core.cli import main
from axon_core.text import (
    ByteTokenizer,
    CharTokenizer,
    PipelineTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    read_text,
)
from axon_xllama import XLlama
from axon_xllama.checkpoints import import_checkpoint
from axon_xllama.gguf.vocabulary import SPLITTERS, GGUFVocabulary
from axon_xllama.gguf.writing import export_gguf

SIZES = {"context": 64, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 96}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"attention": {"type": "GQA", "n_kv_heads": 2}},
    "tied": {"tie_embeddings": True, "rotary": {"type": "rotary", "base": 500.0, "layout": "interleaved"}},
    "qwen2": {"attention": {"type": "GQA", "n_kv_heads": 2, "bias": "qkv"}},
    "qwen3": {"attention": {"type": "GQA", "n_kv_heads": 2, "head_dim": 32, "qk_norm": "rmsnorm"}},
    "linear": {"rotary": {"type": "linear", "factor": 2.0}},
    "yarn": {"rotary": {"type": "yarn", "factor": 4.0}},
    "llama3": {"rotary": {"type": "llama3", "factor": 8.0, "original_context": 8192, "base": 500000.0}},
}


def byte_pairs(splitter: str) -> PipelineTokenizer:
    """A byte-level BPE with markers, split as one of llama.cpp's rules says."""
    made = tokenizers.Tokenizer(models.BPE(ignore_merges=splitter == "llama-bpe"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(read_text()[:60_000].splitlines(keepends=True), trainer)
    made.add_special_tokens(["<|begin|>", "<|end|>"])
    values = __import__("json").loads(made.to_str())
    values["pre_tokenizer"] = SPLITTERS[splitter]
    return PipelineTokenizer(
        __import__("json").dumps(values).encode(), bos=500, eos=501, chat_template="{{ messages[0].content }}"
    )


def characters() -> CharTokenizer:
    return CharTokenizer("".join(sorted(set(read_text()[:20_000]) | set("éß€漢"))))


@pytest.fixture(scope="module")
def pieces(words) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(words.read_bytes(), add_bos=True)


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


def texts(count: int, letters: str | None = None) -> list[str]:
    """Random texts, of these letters, or of English, digits, spaces, marks and other scripts."""
    draw, english = random.Random(0), read_text()
    kinds = ["abc XYZ 0123456789", "  \n\t ", "éàüñ€ß中文日本語한국어عربى", "'s 'LL ,.!?-_<>|", "👩‍👩‍👧 e\u0301"]
    found = []
    for _ in range(count):
        if letters:
            found.append("".join(draw.choice(letters) for _ in range(draw.randint(1, 30))))
            continue
        parts = []
        for _ in range(draw.randint(1, 5)):
            start = draw.randrange(len(english) - 30)
            kind = draw.choice([*kinds, None])
            parts.append(
                "".join(draw.choice(kind) for _ in range(draw.randint(1, 8))) if kind else english[start : start + 20]
            )
        found.append("".join(parts))
    return found


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_what_is_written_is_read_again(name, saved, tmp_path):
    model = saved(ByteTokenizer(), **MODELS[name])
    export_gguf(tmp_path / "run", tmp_path / "model.gguf")
    import_checkpoint(tmp_path / "model.gguf", tmp_path / "ours")
    again = XLlama.load(tmp_path / "ours").eval()
    tokens = torch.randint(258, (2, 50))
    difference = (again(tokens) - model(tokens)).abs().max()
    assert difference <= 1e-5 * model(tokens).abs().max()
    assert again.context == model.context
    export_gguf(tmp_path / "ours", tmp_path / "again.gguf")
    first, second = (gguf.GGUFReader(tmp_path / f"{name}.gguf") for name in ("model", "again"))
    assert [(t.name, bytes(t.data)) for t in first.tensors] == [(t.name, bytes(t.data)) for t in second.tensors]


@pytest.mark.parametrize("kind", ["byte", "char", "sentencepiece", *SPLITTERS])
def test_the_tokenizer_inside_gives_the_same_ids(kind, saved, pieces, tmp_path):
    tokenizer = {"byte": ByteTokenizer, "char": characters, "sentencepiece": lambda: pieces}.get(
        kind, lambda: byte_pairs(kind)
    )()
    saved(tokenizer, more=3)
    export_gguf(tmp_path / "run", tmp_path / "model.gguf")
    import_checkpoint(tmp_path / "model.gguf", tmp_path / "ours")
    again = Tokenizer.load(tmp_path / "ours")
    assert (again.bos, again.eos, again.add_bos) == (tokenizer.bos, tokenizer.eos, tokenizer.add_bos)
    letters = "".join(tokenizer.piece(i).decode() for i in range(tokenizer.vocab_size)) if kind == "char" else None
    for text in texts(500, letters):
        assert again.encode(text) == tokenizer.encode(text), text
    if isinstance(tokenizer, PipelineTokenizer):
        assert isinstance(again, PipelineTokenizer) and again.chat_template == tokenizer.chat_template
        assert again.markers == tokenizer.markers


def test_eight_bits_are_those_of_the_format(saved, tmp_path):
    """The known answer: one scale for 32 features, the largest magnitude / 127 as float16, and rounded shares."""
    model = saved(ByteTokenizer())
    with torch.no_grad():
        row = (torch.arange(32) - 16) / 4
        row[5] = 1.3
        model.blocks[0].feed_forward.down.weight[0, :32] = row
    model.save(tmp_path / "run", ByteTokenizer())
    export_gguf(tmp_path / "run", tmp_path / "model.gguf", type="q8_0")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    stored = bytes(tensors["blk.0.ffn_down.weight"].data.reshape(-1)[:9])
    assert stored.hex() == "0828818991" + "99a129" + stored.hex()[16:]
    assert tensors["blk.0.attn_norm.weight"].tensor_type.name == "F32"
    assert tensors["blk.0.attn_q.weight"].tensor_type.name == "Q8_0"


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "BF16", "F16"])
@torch.no_grad()
def test_types_that_can_be_dequantised_are_read(kind, saved, tmp_path):
    model = saved(ByteTokenizer())
    export_gguf(tmp_path / "run", tmp_path / "plain.gguf")
    plain, stored = gguf.GGUFReader(tmp_path / "plain.gguf"), gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "llama")
    for name, field in plain.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            value, types = field.contents(), field.types
            if types[0] == gguf.GGUFValueType.ARRAY:
                writer.add_array(name, value)
            else:
                writer.add_key_value(name, value, types[0])
    expected = {}
    for tensor in plain.tensors:
        matrix = len(tensor.shape) > 1
        data = gguf.quantize(np.array(tensor.data), stored) if matrix else np.array(tensor.data)
        expected[tensor.name] = gguf.dequantize(data, stored) if matrix else data
        writer.add_tensor(tensor.name, data, raw_dtype=stored if matrix else None)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        step()
    writer.close()
    import_checkpoint(tmp_path / "other.gguf", tmp_path / "ours")
    again = XLlama.load(tmp_path / "ours")
    found = again.blocks[1].feed_forward.down.weight.float().numpy()
    assert np.array_equal(found, expected["blk.1.ffn_down.weight"].reshape(found.shape))
    assert model.n_parameters == again.n_parameters


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": {"type": "GQA", "bias": True}}, "no bias for the attention's output"),
        ({"attention": {"type": "SWA", "window": 8}}, "ignores the attention's window of 8 tokens, .* context of 64"),
        ({"rotary": {"type": "dynamic", "factor": 2.0}}, "has no dynamic rotary embedding"),
        ({"rotary": {"type": "yarn", "factor": 2.0, "attention_factor": 0.5}}, "has no attention_factor of yarn"),
        ({"layers": [{"every": 2, "feed_forward": "relu2"}]}, "all layers have the same parts"),
    ],
    ids=str,
)
def test_what_the_format_cannot_say_is_refused_by_name(changes, message, saved, tmp_path):
    saved(ByteTokenizer(), **changes)
    with pytest.raises(CheckpointError, match=message):
        export_gguf(tmp_path / "run", tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


def test_files_that_cannot_be_read_are_refused_before_long_work(saved, tmp_path):
    saved(ByteTokenizer())
    export_gguf(tmp_path / "run", tmp_path / "model.gguf")
    whole = (tmp_path / "model.gguf").read_bytes()
    cases = {
        "not a GGUF file": b"not one at all" * 10,
        "or damaged": whole[:3000],
        "the architecture must be llama, qwen2, qwen3, got 'bloom'": whole.replace(b"llama", b"bloom", 1),
    }
    for message, content in cases.items():
        (tmp_path / "bad.gguf").write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            import_checkpoint(tmp_path / "bad.gguf", tmp_path / "ours")
        assert not (tmp_path / "ours").exists()


def test_a_tokenizer_that_llama_cpp_lacks_is_refused(words, tmp_path):
    unigram = SentencePieceTokenizer.train(
        read_text()[:30_000], SentencePieceTokenizer.Config(vocab_size=400, algorithm="unigram")
    )
    with pytest.raises(CheckpointError, match="joins pieces pair by pair, and this is a unigram model"):
        GGUFVocabulary.of(unigram)


def test_what_the_command_line_says(saved, tmp_path, capsys):
    saved(ByteTokenizer())
    run, out = str(tmp_path / "run"), tmp_path / "model.gguf"
    assert main(["export", run, "--format", "gguf", "--type", "q8_0", "--out", str(out)]) == 0
    assert f"parameters, in {out}" in capsys.readouterr().out
    assert main(["export", run, "--format", "gguf", "--out", str(out)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["export", run, "--format", "hf", "--type", "f32", "--out", str(tmp_path / "hf")]) == 2
    assert "--type is for --format gguf" in capsys.readouterr().err
    assert main(["import", str(out), "--out", str(tmp_path / "ours")]) == 0


needs_llama = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed"
)


def opened(file: Path, **options: Any) -> Any:
    from llama_cpp import Llama

    given = {"n_ctx": 128, "logits_all": True, "verbose": False, "n_threads": 1, "flash_attn": False}
    return Llama(str(file), type_k=0, type_v=0, **given, **options)


@needs_llama
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_llama_cpp_computes_the_same(name, saved, tmp_path):
    model = saved(ByteTokenizer(), **MODELS[name])
    export_gguf(tmp_path / "run", tmp_path / "model.gguf")
    theirs, tokens = opened(tmp_path / "model.gguf"), list(b"a text, and a second one: 0123")
    theirs.eval(tokens)
    expected = torch.tensor(np.array(theirs.scores[: len(tokens)]))
    assert (model(torch.tensor([tokens]))[0] - expected).abs().max() <= 1e-3


@needs_llama
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["byte", "char", "sentencepiece", *SPLITTERS])
def test_llama_cpp_gives_the_same_ids(kind, saved, pieces, tmp_path):
    tokenizer = {"byte": ByteTokenizer, "char": characters, "sentencepiece": lambda: pieces}.get(
        kind, lambda: byte_pairs(kind)
    )()
    saved(tokenizer)
    export_gguf(tmp_path / "run", tmp_path / "model.gguf")
    theirs = opened(tmp_path / "model.gguf", vocab_only=True)
    letters = "".join(tokenizer.piece(i).decode() for i in range(tokenizer.vocab_size)) if kind == "char" else None
    for text in texts(2000, letters):
        assert theirs.tokenize(text.encode(), add_bos=False, special=False) == tokenizer.encode(text), text
