"""GGUF files: what is written is read again, bit for bit and id for id, and llama.cpp computes the same where it is."""

from __future__ import annotations

import importlib.util
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any
from unicodedata import normalize

import gguf
import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

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
from axon_roformer import Rotary
from axon_xllama import XLlama
from axon_xllama.checkpoints import import_checkpoint, load_checkpoint
from axon_xllama.gguf.keys import Keys
from axon_xllama.gguf.rotary import rope_parameters
from axon_xllama.gguf.vocabulary import SPLITTERS, GGUFVocabulary
from axon_xllama.gguf.writing import export_gguf
from axon_yarn import Llama3Rotary

MODELS: dict[str, dict[str, Any]] = {
    "llama": {"attention": {"type": "GQA", "n_kv_heads": 2}},
    "tied": {"tie_embeddings": True, "rotary": {"type": "rotary", "base": 500.0, "layout": "interleaved"}},
    "qwen2": {"attention": {"type": "GQA", "n_kv_heads": 2, "bias": "qkv"}},
    "qwen3": {"attention": {"type": "GQA", "n_kv_heads": 2, "head_dim": 32, "qk_norm": "rmsnorm"}},
    "linear": {"rotary": {"type": "linear", "factor": 2.0}},
    "yarn": {"rotary": {"type": "yarn", "factor": 4.0}},
    "llama3": {"rotary": {"type": "llama3", "factor": 8.0, "original_context": 8192, "base": 500000.0}},
    "llama3 of a short context": {"rotary": {"type": "llama3", "factor": 4.0}},
    "llama3 with other knees": {
        "rotary": {"type": "llama3", "factor": 3.0, "low_freq_factor": 0.5, "high_freq_factor": 9.0},
    },
}


def fitted(rotary: Llama3Rotary) -> dict[str, Any]:
    """What is read from a file with the factors of this rotary embedding."""
    c = rotary.config
    plain = Rotary(Rotary.Config(dim=c.dim, context=c.context, base=c.base)).frequencies
    factors = (plain.double() / rotary.frequencies.double()).float().numpy()
    return rope_parameters(Keys({"llama.rope.freq_base": c.base}), "llama", c.context, c.dim, factors)


def byte_pairs(splitter: str, ignore_merges: bool | None = None, normalizer: Any = None) -> PipelineTokenizer:
    """A byte-level BPE with markers, split as one of llama.cpp's rules says."""
    made = tokenizers.Tokenizer(
        models.BPE(ignore_merges=splitter == "llama-bpe" if ignore_merges is None else ignore_merges)
    )
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(read_text()[:60_000].splitlines(keepends=True), trainer)
    made.add_special_tokens(["<|begin|>", "<|end|>"])
    values = json.loads(made.to_str())
    values |= {"pre_tokenizer": SPLITTERS[splitter], "normalizer": normalizer}
    return PipelineTokenizer(json.dumps(values).encode(), bos=500, eos=501, chat_template="{{ messages[0].content }}")


def qwens() -> PipelineTokenizer:
    """The steps of transformers' tokenizer of Qwen2, with a small vocabulary."""
    model = json.loads(byte_pairs("qwen2").pipeline)["model"]
    theirs = Qwen2Tokenizer(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])
    return PipelineTokenizer(theirs.backend_tokenizer.to_str().encode())


def characters() -> CharTokenizer:
    return CharTokenizer("".join(sorted(set(read_text()[:20_000]) | set("éß€漢"))))


@pytest.fixture(scope="module")
def pieces(words) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(words.read_bytes(), add_bos=True)


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
    loaded, tokenizer = load_checkpoint(tmp_path / "model.gguf")
    assert torch.equal(loaded(tokens), again(tokens)) and tokenizer.vocab_size == 258
    assert (loaded.head.weight is loaded.embedding.weight) == model.config.tie_embeddings
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
def test_types_that_can_be_dequantised_are_read(kind, saved, changed, tmp_path):
    model = saved(ByteTokenizer())
    export_gguf(tmp_path / "run", tmp_path / "model.gguf")
    stored = gguf.GGMLQuantizationType[kind]
    plain = {
        tensor.name: np.array(tensor.data)
        for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors
        if len(tensor.shape) > 1
    }
    other = {name: gguf.quantize(data, stored) for name, data in plain.items()}
    changed({}, {name: (data, stored) for name, data in other.items()})
    import_checkpoint(tmp_path / "changed.gguf", tmp_path / "ours")
    again = XLlama.load(tmp_path / "ours")
    found = again.blocks[1].feed_forward.down.weight.float().numpy()
    expected = gguf.dequantize(other["blk.1.ffn_down.weight"], stored)
    assert np.array_equal(found, expected.reshape(found.shape))
    assert model.n_parameters == again.n_parameters


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": {"type": "GQA", "bias": True}}, "no bias for the attention's output"),
        ({"attention": {"type": "SWA", "window": 8}}, "ignores the attention's window of 8 tokens, .* context of 64"),
        ({"rotary": {"type": "dynamic", "factor": 2.0}}, "has no dynamic rotary embedding"),
        ({"rotary": {"type": "yarn", "factor": 2.0, "attention_factor": 0.5}}, "has no attention_factor of yarn"),
        ({"layers": [{"every": 2, "feed_forward": "relu2"}]}, "all layers have the same parts"),
        (
            {"feed_forward": "moe"},
            "is written of llama, qwen2, qwen3, mistral, but the model is a mixtral; export it with",
        ),
    ],
    ids=str,
)
def test_what_the_format_cannot_say_is_refused_by_name(changes, message, saved, tmp_path):
    saved(ByteTokenizer(), **changes)
    with pytest.raises(CheckpointError, match=message):
        export_gguf(tmp_path / "run", tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


def test_a_tokenizer_that_llama_cpp_lacks_is_refused(words, tmp_path):
    unigram = SentencePieceTokenizer.train(
        read_text()[:30_000], SentencePieceTokenizer.Config(vocab_size=400, algorithm="unigram")
    )
    with pytest.raises(CheckpointError, match="joins pieces pair by pair, and this is a unigram model"):
        GGUFVocabulary.of(unigram)
    with pytest.raises(CheckpointError, match=r"looks words up first \(ignore_merges\) with the rule llama-bpe"):
        GGUFVocabulary.of(byte_pairs("qwen2", ignore_merges=True))
    with pytest.raises(CheckpointError, match=r"it normalises texts \(NFKC\), which llama.cpp does not"):
        GGUFVocabulary.of(byte_pairs("qwen2", normalizer={"type": "NFKC"}))


@pytest.mark.filterwarnings("ignore")
def test_a_tokenizer_with_nfc_is_written_with_a_notice(saved, tmp_path):
    """As every Qwen has it. Composed texts keep their ids; what llama.cpp does with others is what is read back."""
    tokenizer = qwens()
    saved(tokenizer)
    told: list[str] = []
    export_gguf(tmp_path / "run", tmp_path / "model.gguf", notice=told.append)
    assert len(told) == 1 and "brings texts into NFC first, which llama.cpp does not" in told[0]
    import_checkpoint(tmp_path / "model.gguf", tmp_path / "ours")
    again = Tokenizer.load(tmp_path / "ours")
    for text in texts(300):
        assert again.encode(normalize("NFC", text)) == tokenizer.encode(text), text
    assert again.encode("e\u0301") == byte_pairs("qwen2").encode("e\u0301") != tokenizer.encode("e\u0301")
    if importlib.util.find_spec("llama_cpp"):
        theirs = opened(tmp_path / "model.gguf", vocab_only=True)
        for text in texts(300):
            assert theirs.tokenize(text.encode(), add_bos=False, special=False) == again.encode(text), text


def test_numbers_are_the_shortest_decimals_of_the_file(saved, tmp_path):
    saved(ByteTokenizer(), norm={"type": "rmsnorm", "eps": 1e-5}, rotary={"type": "rotary", "base": 12345.6})
    export_gguf(tmp_path / "run", tmp_path / "model.gguf")
    config = import_checkpoint(tmp_path / "model.gguf", tmp_path / "ours").config
    assert (config.norm.options["eps"], config.rotary.options["base"]) == (1e-5, 12345.6)


@pytest.mark.parametrize("ends", [[], [10], [10, 20], [10, 20, 30, 40]])
def test_ends_of_a_text(ends, saved, tmp_path):
    plain = byte_pairs("qwen2")
    saved(PipelineTokenizer(plain.pipeline, bos=500, eos=501, other_ends=ends))
    told: list[str] = []
    export_gguf(tmp_path / "run", tmp_path / "model.gguf", notice=told.append)
    import_checkpoint(tmp_path / "model.gguf", tmp_path / "ours")
    assert Tokenizer.load(tmp_path / "ours").ends == {501, *ends[:2]}
    assert told == (
        ["a GGUF file has no place for the ids [30, 40], which end a text too: llama.cpp may not stop at them"]
        if len(ends) > 2
        else []
    )


def test_a_head_without_a_size_has_dim_by_heads(saved, changed, tmp_path):
    model = saved(ByteTokenizer(), attention={"type": "GQA", "n_kv_heads": 2, "qk_norm": "rmsnorm"})
    export_gguf(tmp_path / "run", tmp_path / "model.gguf")
    source = changed({"qwen3.attention.key_length": None, "qwen3.attention.value_length": None})
    assert import_checkpoint(source, tmp_path / "ours").n_parameters == model.n_parameters


def test_markers_that_a_file_does_not_name(saved, pieces, changed, tmp_path):
    """llama.cpp takes 1 and 2 in a vocabulary of sentencepiece, and begins a text with the former."""
    saved(pieces)
    export_gguf(tmp_path / "run", tmp_path / "model.gguf")
    names = ("bos_token_id", "eos_token_id", "add_bos_token", "add_space_prefix")
    import_checkpoint(changed(dict.fromkeys(f"tokenizer.ggml.{name}" for name in names)), tmp_path / "ours")
    again = Tokenizer.load(tmp_path / "ours")
    assert (again.bos, again.eos, again.add_bos) == (1, 2, True)
    assert again.encode("a text") == pieces.encode("a text")


@pytest.mark.parametrize("factor", [8.0, 32.0])
@pytest.mark.parametrize("dim", [64, 128])
def test_the_scaling_of_llama_3_is_recognised(factor, dim):
    rotary = Llama3Rotary(Llama3Rotary.Config(dim=dim, context=131_072, base=5e5, factor=factor, original_context=8192))
    assert fitted(rotary) == {
        "rope_theta": 5e5,
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def test_any_scaling_of_the_kind_of_llama_3_is_recognised():
    draw = random.Random(0)
    kinds: Counter[str] = Counter()
    for _ in range(2000):
        dim, base = draw.choice([8, 16, 64, 128]), draw.choice([500.0, 1e4, 5e5, 1e6])
        low = draw.uniform(0.1, 20)
        options = {
            "factor": draw.choice([1.001, 1.5, 4.0, 8.0, draw.uniform(1, 100)]),
            "low_freq_factor": low,
            "high_freq_factor": low + draw.choice([0.05, 1.0, draw.uniform(0.1, 60)]),
            "original_context": draw.choice([8, 64, 2048, 8192, 131_072]),
        }
        rotary = Llama3Rotary(Llama3Rotary.Config(dim=dim, context=1 << 17, base=base, **options))
        found = fitted(rotary)
        kinds[found["rope_type"]] += 1
        if found["rope_type"] == "llama3":
            names = ("low_freq_factor", "high_freq_factor")
            given = {name: found[name] for name in ("factor", *names)}
            given["original_context"] = found["original_max_position_embeddings"]
            again = Llama3Rotary(Llama3Rotary.Config(dim=dim, context=1 << 17, base=base, **given))
        else:
            again = Rotary(Rotary.Config(dim=dim, context=1 << 17, base=base))
        torch.testing.assert_close(again.frequencies, rotary.frequencies, rtol=1.1e-4, atol=0)
    assert kinds["llama3"] > 1000 and kinds["default"] > 50


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


@needs_llama
@pytest.mark.filterwarnings("ignore")
def test_without_a_rule_llama_cpp_gives_the_same_ids(saved, changed, tmp_path):
    saved(byte_pairs("gpt-2"))
    export_gguf(tmp_path / "run", tmp_path / "model.gguf")
    source = changed({"tokenizer.ggml.pre": None})
    import_checkpoint(source, tmp_path / "ours")
    again, theirs = Tokenizer.load(tmp_path / "ours"), opened(source, vocab_only=True)
    found = [(theirs.tokenize(text.encode(), add_bos=False, special=False), text) for text in texts(2000)]
    assert all(ids == again.encode(text) for ids, text in found)
    assert any(ids != byte_pairs("gpt-2").encode(text) for ids, text in found)


@needs_llama
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("llama", {"llama.rope.scaling.factor": 2.0}),
        ("llama", {"llama.rope.scaling.factor": 2.0, "llama.rope.scaling.type": "none"}),
        ("yarn", {"llama.rope.scaling.original_context_length": None}),
        ("yarn", {"llama.rope.scaling.attn_factor": 0.8}),
    ],
    ids=str,
)
@torch.no_grad()
def test_llama_cpp_computes_what_is_read(name, keys, saved, changed, tmp_path):
    saved(ByteTokenizer(), **MODELS[name])
    export_gguf(tmp_path / "run", tmp_path / "model.gguf")
    import_checkpoint(changed(keys), tmp_path / "ours")
    theirs, tokens = opened(tmp_path / "changed.gguf"), list(b"a text, and a second one: 0123")
    theirs.eval(tokens)
    expected = torch.tensor(np.array(theirs.scores[: len(tokens)]))
    assert (XLlama.load(tmp_path / "ours").eval()(torch.tensor([tokens]))[0] - expected).abs().max() <= 1e-3
