"""Tokenizers of `tokenizer.json`: ids as the library's, streaming, markers that no text becomes."""

from __future__ import annotations

import json
import random

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from axon_core import CheckpointError, DataError, UsageError
from axon_core.text import PipelineTokenizer, Tokenizer, read_text
from axon_core.text.tokenizer import DecodeStream

MARKERS = ["<|begin|>", "<|end|>"]
SPLITS = {
    "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "llama3": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                tokenizers.Regex(
                    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
                    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
                ),
                "isolated",
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
    "digits": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
}


def byte_level(split: str, *, nfc: bool = False) -> tokenizers.Tokenizer:
    """A byte-level BPE of 600 tokens, with markers, one of them not special, and a blank added token."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = SPLITS[split], decoders.ByteLevel()
    if nfc:
        made.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(read_text()[:60_000].splitlines(keepends=True), trainer)
    made.add_special_tokens(MARKERS)
    made.add_tokens([AddedToken("<think>", normalized=False), AddedToken("    ", normalized=False)])
    return made


def falling_back() -> tokenizers.Tokenizer:
    """BPE as of Llama 2: spaces as ▁, one before the text, and bytes for unknown characters."""
    plain = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    plain.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    plain.train_from_iterator(read_text()[:60_000].splitlines(), trainer)
    values = json.loads(plain.to_str())
    values["added_tokens"] = values["added_tokens"][:3]
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made = tokenizers.Tokenizer.from_str(json.dumps(values))
    made.decoder = decoders.Sequence(steps)
    return made


LIBRARY = {
    "gpt2": byte_level("gpt2"),
    "llama3": byte_level("llama3"),
    "digits, NFC": byte_level("digits", nfc=True),
    "byte fallback": falling_back(),
}


def texts(count: int, seed: int = 0) -> list[str]:
    """Random texts: letters, digits, spaces, marks of many scripts, any code points, pieces of English."""
    draw, english = random.Random(seed), read_text()
    alphabets = [
        "abc XYZ 0123456789",
        " \n\t\r  ",
        "éàüñ€ß中文日本語한국어عربىहिन्दी",
        "👩‍👩‍👧 e\u0301 \u200b\ufeff ①½",
        "'s 're I'LL ▁ Ġ <0x0A>",
    ]
    found = []
    for _ in range(count):
        parts = []
        for _ in range(draw.randint(0, 6)):
            kind = draw.randrange(len(alphabets) + 2)
            if kind == len(alphabets):
                start = draw.randrange(len(english) - 30)
                parts.append(english[start : start + draw.randint(1, 30)])
            elif kind > len(alphabets):
                points = [draw.randrange(0x110000) for _ in range(draw.randint(1, 5))]
                parts.append("".join(chr(p) for p in points if not 0xD800 <= p < 0xE000))
            else:
                parts.append("".join(draw.choice(alphabets[kind]) for _ in range(draw.randint(1, 12))))
        found.append("".join(parts))
    return found


@pytest.mark.parametrize("name", LIBRARY)
def test_ids_and_texts_are_the_librarys(name):
    theirs = LIBRARY[name]
    ours = PipelineTokenizer(theirs.to_str().encode())
    assert ours.vocab_size == theirs.get_vocab_size()
    for text in texts(5000):
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == theirs.decode(ids), text


@pytest.mark.parametrize("name", LIBRARY)
def test_pieces_of_a_stream_join_to_the_whole(name):
    ours = PipelineTokenizer(LIBRARY[name].to_str().encode())
    for text in texts(300, seed=1):
        ids, stream = ours.encode(text), DecodeStream(ours)
        assert "".join([*map(stream.push, ids), stream.finish()]) == ours.decode(ids)
        for cut in (0, len(ids) // 2):
            assert ours.decode(ids[:cut]) + ours.decode(ids[cut:], after=ids[:cut]) == ours.decode(ids) or "\ufffd" in (
                ours.decode(ids[:cut]) + ours.decode(ids[cut:], after=ids[:cut])
            )


def test_no_text_becomes_a_marker_unless_it_is_asked_for():
    ours = PipelineTokenizer(LIBRARY["gpt2"].to_str().encode(), bos=600, eos=601)
    text = "a<|end|>b<think>c    d"
    assert set(ours.markers) == {*MARKERS, "<think>"} and ours.special == frozenset(MARKERS)
    assert not set(ours.encode(text)) & set(ours.markers.values())
    assert ours.decode(ours.encode(text)) == text
    assert 603 in ours.encode(text)  # the blank added token is no marker
    marked = ours.encode_marked(text)
    assert marked.count(601) == 1 and marked.count(602) == 1
    assert ours.decode(marked) == "ab<think>c    d"  # special markers decode to nothing


def test_a_marker_that_the_vocabulary_itself_finds_is_an_error():
    values = json.loads(LIBRARY["gpt2"].to_str())
    values["model"]["ignore_merges"] = True
    values["pre_tokenizer"]["use_regex"] = False  # whole texts are looked up in the vocabulary
    values["model"]["vocab"] |= {"<|end|>": 601}
    ours = PipelineTokenizer(json.dumps(values).encode())
    with pytest.raises(DataError, match=r"the text contains '<\|end\|>', which is a marker of this tokenizer"):
        ours.encode("<|end|>")


def test_ids_far_above_the_number_of_tokens_are_refused():
    values = json.loads(LIBRARY["gpt2"].to_str())
    values["added_tokens"] = []
    tokens = len(values["model"]["vocab"]) + 1
    most = 10 * tokens + 1000
    values["model"]["vocab"]["zzzz"] = most
    assert PipelineTokenizer(json.dumps(values).encode()).vocab_size == most + 1
    for highest in (most + 1, 4294967295):
        values["model"]["vocab"]["zzzz"] = highest
        message = rf"must be at most {most:,} \(10 times its {tokens} tokens, plus 1,000\), got {highest:,}"
        with pytest.raises(ValueError, match=message):
            PipelineTokenizer(json.dumps(values).encode())


def test_what_the_librarys_code_panics_with_is_an_error():
    values = json.loads(LIBRARY["gpt2"].to_str())
    values["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    with pytest.raises(ValueError, match=r"the tokenizers library refuses it: Precompiled: .*precompiled_charsmap"):
        PipelineTokenizer(json.dumps(values).encode())


def test_steps_that_would_cut_or_pad_a_prompt_are_left_out():
    library = tokenizers.Tokenizer.from_str(LIBRARY["gpt2"].to_str())
    library.enable_truncation(4)
    library.enable_padding(length=64, pad_id=0)
    ours = PipelineTokenizer(library.to_str().encode())
    assert ours.decode(ours.encode("a text of several tokens")) == "a text of several tokens"


def test_it_survives_saving(tmp_path):
    ours = PipelineTokenizer(
        LIBRARY["llama3"].to_str().encode(), bos=600, eos=601, add_bos=True, other_ends=[602], chat_template="{{ 1 }}"
    )
    ours.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert isinstance(again, PipelineTokenizer)
    assert again.pipeline == ours.pipeline and again.chat_template == "{{ 1 }}"
    assert (again.bos, again.eos, again.ends, again.add_bos) == (600, 601, {601, 602}, True)
    assert again.encode_prompt("Hi") == [600, *ours.encode("Hi")]
    (tmp_path / "tokenizer.pipeline.json").write_text("{}")
    with pytest.raises(CheckpointError, match="was changed after it was written"):
        Tokenizer.load(tmp_path)


def test_a_lone_surrogate_is_refused():
    with pytest.raises(DataError, match="lone surrogate"):
        PipelineTokenizer(LIBRARY["gpt2"].to_str().encode()).encode("a\ud800")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "it has no model"),
        ({"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}, "its decoder is not known: WordPiece"),
        ({"decoder": None}, "its decoder is not known: none"),
        ({"added_tokens": [{"id": "x"}]}, "an added token must have an id and a content"),
        ({"pre_tokenizer": {"type": "Nothing"}}, "the tokenizers library refuses it"),
    ],
    ids=str,
)
def test_pipelines_that_cannot_be_used(changes, message):
    values = json.loads(LIBRARY["gpt2"].to_str()) | changes
    with pytest.raises(ValueError, match=message):
        PipelineTokenizer(json.dumps(values).encode())


def test_the_library_is_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(UsageError, match=r"tokenizers cannot be used here .* Install it: .*\[tokenizers\]"):
        PipelineTokenizer(LIBRARY["gpt2"].to_str().encode())
