"""An Axon tokenizer as `tokenizer.json` and `tokenizer_config.json`, with which `AutoTokenizer` gives the same ids.

The files describe a pipeline of the tokenizers library: text is normalised, split, and each part encoded by a model.
Its special tokens are found in texts unless `split_special_tokens` says otherwise; in Axon no text is a marker.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from axon_core.text import (
    ByteTokenizer,
    CharTokenizer,
    PieceKind,
    PipelineTokenizer,
    SentencePiece,
    SentencePieceModel,
    SentencePieceTokenizer,
    Tokenizer,
    byte_characters,
)

_SPACE = "▁"


class InexpressibleError(Exception):
    """A tokenizer whose ids no pipeline of the tokenizers library gives; the message says why."""


def tokenizer_files(tokenizer: Tokenizer, context: int) -> dict[str, dict[str, Any]]:
    """Return what to write into a Hugging Face folder, by the files' names.

    Args:
        tokenizer: the model's.
        context: how many tokens the model reads.

    Raises:
        InexpressibleError: transformers cannot give the same ids.
    """
    match tokenizer:
        case PipelineTokenizer():  # whose file is written as it is
            return {"tokenizer_config.json": _settings(tokenizer, context)}
        case ByteTokenizer():
            pipeline, special = _bytes(), {"bos_token": (256, "<s>"), "eos_token": (257, "</s>")}
        case CharTokenizer():
            characters = {tokenizer.piece(token).decode(): token for token in range(tokenizer.vocab_size)}
            pipeline, special = characters_pipeline(characters), {}
        case SentencePieceTokenizer():
            model = SentencePieceModel.read(tokenizer.model)
            pipeline, special = sentencepiece_pipeline(model), _specials(tokenizer, model)
        case _:
            raise InexpressibleError(f"a tokenizer of type {tokenizer.type!r} is unknown to transformers")
    begin = special["bos_token"] if tokenizer.add_bos else None
    return {
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {"id": token, "content": text, "special": True, "normalized": False}
                | {"single_word": False, "lstrip": False, "rstrip": False}
                for token, text in sorted(special.values())
            ],
            **{"normalizer": None, "pre_tokenizer": None, "decoder": None, "post_processor": _template(begin)},
            **pipeline,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{name: text for name, (_, text) in special.items()},
            "add_bos_token": tokenizer.add_bos,
            "add_eos_token": False,
            "split_special_tokens": True,  # "<s>" in a text is three characters
            "clean_up_tokenization_spaces": False,
            "model_max_length": context,
        },
    }


def _settings(tokenizer: PipelineTokenizer, context: int) -> dict[str, Any]:
    """Return the settings beside a published `tokenizer.json`; texts may hold markers, as chat templates need."""
    names = {"bos_token": tokenizer.name(tokenizer.bos), "eos_token": tokenizer.name(tokenizer.eos)}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{name: text for name, text in names.items() if text},
        "add_bos_token": tokenizer.add_bos,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
    }


def _template(begin: tuple[int, str] | None) -> dict[str, Any]:
    """Return the step that puts `bos` before a text."""
    first, second = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    if begin is None:
        return {"type": "TemplateProcessing", "single": [first], "pair": [first, second], "special_tokens": {}}
    token, text = begin
    one, two = ({"SpecialToken": {"id": text, "type_id": i}} for i in (0, 1))
    return {
        "type": "TemplateProcessing",
        "single": [one, first],
        "pair": [one, first, two, second],
        "special_tokens": {text: {"id": text, "ids": [token], "tokens": [text]}},
    }


def _bytes() -> dict[str, Any]:
    """The bytes as the library's ByteLevel names them, by printable characters, and nothing to merge."""
    names = byte_characters()
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    vocabulary = {names[byte]: byte for byte in range(256)} | {"<s>": 256, "</s>": 257}
    return {"pre_tokenizer": level, "decoder": level, "model": _bpe(vocabulary, [])}


def characters_pipeline(vocabulary: Mapping[str, int]) -> dict[str, Any]:
    """Return the steps by which each character is a word; an unknown one is an error, as in Axon."""
    return {
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": r"[\s\S]"},
            "behavior": "Isolated",
            "invert": False,
        },
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "WordLevel",
            "vocab": dict(vocabulary),
            "unk_token": "no character of this vocabulary",
        },
    }


def _specials(tokenizer: SentencePieceTokenizer, model: SentencePieceModel) -> dict[str, tuple[int, str]]:
    """Return the tokens that no text encodes to, by the names that transformers has for them."""
    unknown = next((token for token, piece in enumerate(model.pieces) if piece.kind == PieceKind.UNKNOWN), None)
    named = {"unk_token": unknown, "bos_token": tokenizer.bos, "eos_token": tokenizer.eos}
    return {name: (token, model.pieces[token].text) for name, token in named.items() if token is not None}


def sentencepiece_pipeline(model: SentencePieceModel) -> dict[str, Any]:
    """Return the steps of the tokenizers library that give the ids of a sentencepiece model.

    Raises:
        InexpressibleError: there are none.
    """
    if model.rule or model.merges_spaces or not model.marks_spaces or model.suffix:
        raise InexpressibleError("its sentencepiece model rewrites texts before it splits them")
    if any(count > 1 for count in Counter(piece.text for piece in model.pieces).values()):
        raise InexpressibleError("its sentencepiece model has a piece twice")
    if any(piece.kind == PieceKind.UNUSED for piece in model.pieces):
        raise InexpressibleError("its sentencepiece model has unused pieces")
    match model.algorithm:
        case "bpe":
            pipeline = _merging(model.pieces)
        case "unigram":
            raise InexpressibleError(
                "a unigram model adds up scores with a lower precision than the tokenizers library"
            )
        case other:
            raise InexpressibleError(f"a sentencepiece model of type {other!r} has no counterpart there")
    prefix = [{"type": "Prepend", "prepend": _SPACE}] if model.adds_space else []
    space = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    back = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if model.adds_space else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*prefix, space]},
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        **pipeline,
    }


def _merging(pieces: list[SentencePiece]) -> dict[str, Any]:
    """Byte pairs: sentencepiece joins the two neighbours whose union has the highest score, the leftmost at a tie.

    The library goes by the rank of a pair instead, so no two unions may have the same score.
    """
    whole = {piece.text for piece in pieces if piece.kind == PieceKind.USER_DEFINED}
    if any(len(text) > 1 for text in whole):
        raise InexpressibleError("its sentencepiece model has symbols of several characters that are never split")
    # Such a symbol is joined with no neighbour.
    usual = {piece.text: piece for piece in pieces if piece.kind == PieceKind.NORMAL and not whole & {*piece.text}}
    unions = sorted((piece for piece in usual.values() if len(piece.text) > 1), key=lambda piece: -piece.score)
    if len({piece.score for piece in unions}) < len(unions):
        raise InexpressibleError("its sentencepiece model has pieces of equal score")
    if {character for piece in unions for character in piece.text} - usual.keys():
        raise InexpressibleError("its sentencepiece model has pieces of unknown characters")
    merges = [
        f"{left} {right}"
        for piece in unions
        for i in range(1, len(piece.text))
        if (left := piece.text[:i]) in usual and (right := piece.text[i:]) in usual
    ]
    unknown = next((piece.text for piece in pieces if piece.kind == PieceKind.UNKNOWN), None)
    has_bytes = any(piece.kind == PieceKind.BYTE for piece in pieces)
    vocabulary = {piece.text: token for token, piece in enumerate(pieces)}
    return {"model": _bpe(vocabulary, merges, unknown=unknown, has_bytes=has_bytes)}


def _bpe(
    vocabulary: Mapping[str, int], merges: list[str], *, unknown: str | None = None, has_bytes: bool = False
) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": has_bytes,
        "ignore_merges": False,
        "vocab": dict(vocabulary),
        "merges": merges,
    }
