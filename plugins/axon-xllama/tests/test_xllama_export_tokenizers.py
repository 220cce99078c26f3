"""Exported tokenizers: `AutoTokenizer` gives the ids that ours gives, on thousands of strings."""

import json
import random
import subprocess
import sys
from functools import cache
from pydoc_data.topics import topics

import pytest
import sentencepiece
from transformers import AutoTokenizer

from axon_core import DataError
from axon_core.text import ByteTokenizer, CharTokenizer, SentencePieceModel, SentencePieceTokenizer, Tokenizer
from axon_xllama import XLlama
from axon_xllama.checkpoints import export_checkpoint

TEXT = "\n".join(topics[name] for name in sorted(topics))[:60_000]
PARTS = (
    *("<s>", "</s>", "<unk>", "<0x41>", "<0x0A>", "<bos>", "[INST]", "▁", " ", "  ", "   ", "\n", "\n\n", "\t", "\r\n"),
    *("\0", "\x07", "\x7f", "é", "e\u0301", "ﬁ", "漢字", "语", "🙂", "👩‍👩‍👧", "\u200b", "\ufeff", "\xa0", "\u2028"),
    *("the", " the", "ing", "import", "aaaa", "ababab", "abaab", "1234", "    return x\n"),
)


@cache
def strings(n: int = 5000) -> list[str]:
    """Return texts of all kinds, the same each time; the first ones are single parts."""
    draw = random.Random(0)
    return ["", *PARTS, *("".join(_some(draw) for _ in range(draw.randint(1, 10))) for _ in range(n - 1 - len(PARTS)))]


def _some(draw: random.Random) -> str:
    kind = draw.random()
    if kind < 0.5:
        return draw.choice(PARTS)
    if kind < 0.7:
        start = draw.randrange(len(TEXT))
        return TEXT[start : start + draw.randint(1, 30)]
    return chr(draw.choice([draw.randint(0, 127), draw.randint(128, 0xD7FF), draw.randint(0xE000, 0x10FFFF)]))


def trained(**options) -> SentencePieceTokenizer:
    return SentencePieceTokenizer.train(TEXT, SentencePieceTokenizer.Config(vocab_size=600, **options))


def like_llamas(**options) -> bytes:
    """Return a model trained as Llama's was: digits apart, unseen characters as bytes, no newline of its own."""
    from io import BytesIO

    model = BytesIO()
    given = {
        "model_type": "bpe",
        "vocab_size": 600,
        "byte_fallback": True,
        "character_coverage": 0.999,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
        "minloglevel": 2,
        "num_threads": 1,
    }
    lines = iter(line for line in TEXT.splitlines() if line)
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, model_writer=model, **given | options)
    return model.getvalue()


def exported(tokenizer: Tokenizer, tmp_path, **options):
    """Save a model with the tokenizer, export it, and return what `AutoTokenizer` makes of the folder."""
    model = XLlama.build(vocab_size=tokenizer.vocab_size, context=64, dim=8, n_layers=1, n_heads=2)
    model.save(tmp_path / "run")
    tokenizer.save(tmp_path / "run")
    export_checkpoint(tmp_path / "run", tmp_path / "hf", format="hf", **options)
    return AutoTokenizer.from_pretrained(tmp_path / "hf")


KINDS = {
    "byte": ByteTokenizer,
    "sentencepiece": trained,
    "sentencepiece with bos": lambda: trained(add_bos=True),
    "Llama's": lambda: SentencePieceTokenizer(like_llamas(), add_bos=True),
    "without the first space": lambda: SentencePieceTokenizer(like_llamas(add_dummy_prefix=False)),
    "without bytes": lambda: SentencePieceTokenizer(like_llamas(byte_fallback=False)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_ids_equal(kind, tmp_path):
    ours = KINDS[kind]()
    theirs = exported(ours, tmp_path)
    expected = [ours.encode_prompt(text) for text in strings()]
    assert theirs(strings())["input_ids"] == expected
    assert (theirs.bos_token_id, theirs.eos_token_id, len(theirs)) == (ours.bos, ours.eos, ours.vocab_size)
    if kind != "without bytes":  # an unknown character has no text there
        decoded = [theirs.decode(ids, skip_special_tokens=True) for ids in expected]
        assert decoded == [ours.decode(ids) for ids in expected]


def test_ids_of_characters_equal_and_others_are_refused_by_both(tmp_path):
    ours = CharTokenizer.train(TEXT + "é漢🙂\0\r▁", CharTokenizer.Config())
    theirs = exported(ours, tmp_path)
    known = 0
    for text in strings():
        try:
            expected = ours.encode_prompt(text)
        except DataError:
            with pytest.raises(Exception, match="WordLevel"):
                theirs(text)
        else:
            known += 1
            assert theirs(text)["input_ids"] == expected
            assert theirs.decode(expected) == text
    assert 500 < known < 4500


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"model_type": "unigram"}, "a unigram model adds up scores"),
        ({"normalization_rule_name": "nmt_nfkc"}, "rewrites texts before it splits them"),
        ({"remove_extra_whitespaces": True}, "rewrites texts before it splits them"),
        ({"user_defined_symbols": ["[INST]"]}, "symbols of several characters"),
        ({"model_type": "char"}, "of type 'char'"),
    ],
    ids=str,
)
def test_what_cannot_be_expressed_is_said(model, reason, tmp_path):
    told: list[str] = []
    size = {"vocab_size": 340} if model.get("model_type") == "char" else {}
    tokenizer = SentencePieceTokenizer(like_llamas(**model, **size))
    exported(tokenizer, tmp_path, notice=told.append)
    assert len(told) == 1 and reason in told[0] and "encode it with Axon's tokenizer" in told[0]
    assert not (tmp_path / "hf" / "tokenizer.json").exists()
    assert (tmp_path / "hf" / "tokenizer.model").read_bytes() == tokenizer.model
    assert json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text()) == {"add_bos_token": False}


def test_what_a_model_file_says_is_what_the_library_says():
    data = like_llamas(user_defined_symbols=["\n"])
    model, library = SentencePieceModel.read(data), sentencepiece.SentencePieceProcessor(model_proto=data)
    ids = range(library.get_piece_size())
    assert [piece.text for piece in model.pieces] == [library.id_to_piece(i) for i in ids]
    assert [piece.score for piece in model.pieces] == [library.get_score(i) for i in ids]
    assert [piece.kind.name == "BYTE" for piece in model.pieces] == [library.is_byte(i) for i in ids]
    assert [piece.kind.name == "CONTROL" for piece in model.pieces] == [library.is_control(i) for i in ids]
    assert [piece.text for piece in model.pieces if piece.kind.name == "USER_DEFINED"] == ["\n"]
    assert (model.algorithm, model.rule, model.adds_space, model.merges_spaces) == ("bpe", b"", True, False)


def test_exporting_needs_neither_transformers_nor_its_tokenizers(tmp_path):
    exported(trained(), tmp_path)
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('transformers', 'tokenizers', 'google.protobuf')));"
        "from pathlib import Path; from axon_xllama.checkpoints import export_checkpoint;"
        f"export_checkpoint(Path({str(tmp_path / 'run')!r}), Path({str(tmp_path / 'again')!r}), format='hf')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (tmp_path / "hf" / "tokenizer.json").read_bytes()
