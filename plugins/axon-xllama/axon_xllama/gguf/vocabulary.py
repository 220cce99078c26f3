"""A tokenizer as a GGUF file describes it, written and read.

llama.cpp has two kinds of interest here. `llama` is sentencepiece's BPE: pieces with scores, of which the pair with the
highest is joined first. `gpt2` is byte-level BPE: tokens spelled with one printable character for each byte, merges in
their order, and a named rule by which a text is split beforehand.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from axon_core import CheckpointError, to_json
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
from axon_xllama.checkpoints.layout import Notice
from axon_xllama.checkpoints.tokenizer_files import InexpressibleError, characters_pipeline, sentencepiece_pipeline

__all__ = ["GGUFVocabulary"]

_BYTE_LEVEL: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_NFC = {"type": "NFC"}
_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"


def _split(*patterns: str) -> dict[str, Any]:
    rules = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in patterns
    ]
    return {"type": "Sequence", "pretokenizers": [*rules, {**_BYTE_LEVEL, "use_regex": False}]}


SPLITTERS: Mapping[str, Mapping[str, Any]] = {
    "gpt-2": _BYTE_LEVEL,
    "smollm": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL]},
    "llama-bpe": _split(f"{_LETTERS}\\p{{N}}{{1,3}}{_REST}"),
    "qwen2": _split(f"{_LETTERS}\\p{{N}}{_REST}"),
    "default": _split(r"[\p{P}\$\+<=>\^~\|]+", _WORDS, r"\p{N}+", "[0-9][0-9][0-9]"),
}
"""How llama.cpp's named rules split a text, as steps of the tokenizers library; a file without a name has `default`."""


@dataclass
class GGUFVocabulary:
    """The tokens of a model, as a GGUF file has them."""

    model: str
    """`llama` or `gpt2`."""
    tokens: list[str]
    """Their texts."""
    kinds: list[int]
    """What each is for, by sentencepiece's numbers (`PieceKind`)."""
    scores: list[float] = field(default_factory=list[float])
    """Of `llama`: how early a piece is joined."""
    merges: list[str] = field(default_factory=list[str])
    """Of `gpt2`: pairs, the earliest first."""
    splitter: str = ""
    """Of `gpt2`: the rule by which a text is split first."""
    bos: int | None = None
    eos: int | None = None
    unknown: int | None = None
    add_bos: bool = False
    add_space: bool = False
    ends: frozenset[int] = frozenset()
    """Further ids that end a text."""
    chat_template: str = ""

    @classmethod
    def of(cls, tokenizer: Tokenizer, notice: Notice = warnings.warn) -> GGUFVocabulary:
        """Return the description of a tokenizer.

        Args:
            tokenizer: the model's.
            notice: called with what llama.cpp does otherwise in few texts.

        Raises:
            CheckpointError: llama.cpp would give other ids; the message says why.
        """
        try:
            match tokenizer:
                case ByteTokenizer():
                    found = _bytes()
                case CharTokenizer():
                    found = _characters(tokenizer)
                case SentencePieceTokenizer():
                    found = _pieces(SentencePieceModel.read(tokenizer.model))
                case PipelineTokenizer():
                    found = _pipeline(tokenizer, notice)
                case _:
                    raise InexpressibleError(f"it is of type {tokenizer.type!r}")
        except InexpressibleError as error:
            raise CheckpointError(f"the tokenizer has no counterpart in a GGUF file: {error}") from None
        found.bos, found.eos, found.add_bos = tokenizer.bos, tokenizer.eos, tokenizer.add_bos
        found.ends = tokenizer.other_ends
        return found

    def padded(self, rows: int) -> GGUFVocabulary:
        """Add unused tokens until there are as many as the embedding has rows."""
        more = range(len(self.tokens), rows)
        self.tokens += [f"[PAD{token}]" for token in more]
        self.kinds += [PieceKind.UNUSED] * len(more)
        self.scores += [-1000.0] * len(more) if self.scores else []
        return self

    def tokenizer(self) -> PipelineTokenizer:
        """Return the tokenizer that this describes.

        Raises:
            CheckpointError: it cannot be used.
        """
        try:
            pipeline = self._merging() if self.model == "gpt2" else self._joining()
            return PipelineTokenizer(
                to_json({"version": "1.0", "added_tokens": self._added(), **pipeline}, ensure_ascii=False).encode(),
                bos=self.bos,
                eos=self.eos,
                add_bos=self.add_bos,
                other_ends=self.ends,
                chat_template=self.chat_template,
            )
        except (InexpressibleError, ValueError) as error:
            raise CheckpointError(f"the tokenizer of the GGUF file cannot be used: {error}") from None

    def _added(self) -> list[dict[str, Any]]:
        special = {PieceKind.CONTROL: True, PieceKind.USER_DEFINED: False}
        if self.model == "llama":
            special[PieceKind.UNKNOWN] = True
        return [
            {"id": token, "content": text, "special": special[PieceKind(kind)], "normalized": False}
            | {"single_word": False, "lstrip": False, "rstrip": False}
            for token, (text, kind) in enumerate(zip(self.tokens, self.kinds, strict=True))
            if kind in special
        ]

    def _merging(self) -> dict[str, Any]:
        if self.splitter not in SPLITTERS:
            raise InexpressibleError(f"tokenizer.ggml.pre is {self.splitter!r:.60}, known are {', '.join(SPLITTERS)}")
        vocabulary = {text: token for token, text in enumerate(self.tokens)}
        merges = [] if self.merges == self.no_merges() else self.merges
        characters = self._spelled()
        if characters is not None and merges == _character_merges(self.tokens, self.kinds):
            return characters_pipeline(characters)
        for merge in merges:
            left, _, right = merge.partition(" ")
            if not {left, right, left + right} <= vocabulary.keys():
                raise InexpressibleError(
                    f"tokenizer.ggml.merges has {merge!r:.60}, which is not two tokens whose union is one"
                )
        return {
            "pre_tokenizer": SPLITTERS[self.splitter],
            "decoder": _BYTE_LEVEL,
            "model": {
                "type": "BPE",
                "vocab": vocabulary,
                "merges": merges,
                "ignore_merges": self.splitter == "llama-bpe",
            },
        }

    def no_merges(self) -> list[str]:
        """Return what stands for no merges, without which llama.cpp refuses a file: a pair whose union is no token."""
        longest = max(self.tokens, key=len)
        return [f"{longest} {longest}"]

    def _spelled(self) -> dict[str, int] | None:
        """Return the characters that the tokens stand for, if each is one: what `_characters` has written."""
        bytes_of = {character: byte for byte, character in byte_characters().items()}
        found: dict[str, int] = {}
        for token, (text, kind) in enumerate(zip(self.tokens, self.kinds, strict=True)):
            if kind != PieceKind.NORMAL:
                found[text] = token
                continue
            try:
                spelled = bytes(bytes_of[character] for character in text).decode()
            except (KeyError, UnicodeDecodeError):
                return None
            if len(spelled) != 1:
                return None
            found[spelled] = token
        return found

    def _joining(self) -> dict[str, Any]:
        pieces = map(SentencePiece, self.tokens, self.scores, map(PieceKind, self.kinds))
        kept = [piece if piece.kind != PieceKind.UNUSED else piece._replace(kind=PieceKind.CONTROL) for piece in pieces]
        return sentencepiece_pipeline(
            SentencePieceModel(pieces=kept, algorithm="bpe", adds_space=self.add_space, merges_spaces=False)
        )


def _bytes() -> GGUFVocabulary:
    names = byte_characters()
    tokens = [names[byte] for byte in range(256)] + ["<s>", "</s>"]
    kinds = [int(PieceKind.NORMAL)] * 256 + [int(PieceKind.CONTROL)] * 2
    return GGUFVocabulary("gpt2", tokens, kinds, splitter="gpt-2")


def _characters(tokenizer: CharTokenizer) -> GGUFVocabulary:
    """Each character is a token; those of several bytes are put together by merges. Other characters are lost."""
    names = byte_characters()
    tokens = ["".join(names[byte] for byte in tokenizer.piece(token)) for token in range(tokenizer.vocab_size)]
    kinds = [int(PieceKind.NORMAL)] * len(tokens)
    return GGUFVocabulary("gpt2", tokens, kinds, merges=_character_merges(tokens, kinds), splitter="gpt-2")


def _character_merges(tokens: Sequence[str], kinds: Sequence[int]) -> list[str]:
    """Return the merges by which characters of several bytes are put together; their first bytes are no tokens."""
    spelled = [text for text, kind in zip(tokens, kinds, strict=True) if kind == PieceKind.NORMAL]
    return [*dict.fromkeys(f"{text[:i]} {text[i]}" for text in spelled for i in range(1, len(text)))]


def _pieces(model: SentencePieceModel) -> GGUFVocabulary:
    if model.algorithm != "bpe":
        raise InexpressibleError(f"llama.cpp joins pieces pair by pair, and this is a {model.algorithm} model")
    if model.rule or model.merges_spaces or not model.marks_spaces or model.suffix:
        raise InexpressibleError("its sentencepiece model rewrites texts before it splits them")
    if not any(piece.kind == PieceKind.BYTE for piece in model.pieces):
        raise InexpressibleError("its sentencepiece model has no pieces for bytes, which llama.cpp needs")
    # llama.cpp puts a space after what it takes for a marker; a line break that is never split is none.
    kinds = [
        PieceKind.NORMAL if piece.kind == PieceKind.USER_DEFINED and not piece.text.strip() else piece.kind
        for piece in model.pieces
    ]
    unknown = next((token for token, kind in enumerate(kinds) if kind == PieceKind.UNKNOWN), None)
    return GGUFVocabulary(
        "llama",
        [piece.text for piece in model.pieces],
        [int(kind) for kind in kinds],
        scores=[piece.score for piece in model.pieces],
        unknown=unknown,
        add_space=model.adds_space,
    )


def _pipeline(tokenizer: PipelineTokenizer, notice: Notice) -> GGUFVocabulary:
    values: Any = json.loads(tokenizer.pipeline)
    model, kinds = values["model"], [int(PieceKind.UNUSED)] * tokenizer.vocab_size
    if model.get("type") != "BPE":
        raise InexpressibleError(f"its model is {model.get('type')!r}, and not BPE")
    if (normalizer := values.get("normalizer")) is not None and normalizer != _NFC:
        raise InexpressibleError(f"it normalises texts ({normalizer.get('type')}), which llama.cpp does not")
    tokens = [f"[PAD{token}]" for token in range(tokenizer.vocab_size)]
    for text, token in model["vocab"].items():
        tokens[token], kinds[token] = text, int(PieceKind.NORMAL)
    for text, token in tokenizer.markers.items():
        tokens[token] = text
        kinds[token] = int(PieceKind.CONTROL if text in tokenizer.special else PieceKind.USER_DEFINED)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    splitter = _splitter(values.get("pre_tokenizer"))
    if bool(model.get("ignore_merges")) != (splitter == "llama-bpe"):
        raise InexpressibleError("llama.cpp looks words up first (ignore_merges) with the rule llama-bpe and no other")
    if normalizer:
        notice(
            "the tokenizer brings texts into NFC first, which llama.cpp does not: a text with decomposed characters, "
            "such as e and a combining accent, may have other ids there"
        )
    found = GGUFVocabulary("gpt2", tokens, kinds, merges=merges, splitter=splitter)
    found.chat_template = tokenizer.chat_template
    return found


def _splitter(step: Any) -> str:
    for name, known in SPLITTERS.items():
        if _essential(step) == _essential(known):
            return name
    raise InexpressibleError(f"none of llama.cpp's rules splits texts as its steps do ({to_json(step)[:200]})")


def _essential(step: Any) -> Any:
    """Return a step without what does not change the ids."""
    if isinstance(step, Mapping):
        inner: Sequence[Any] | None = step.get("pretokenizers")
        if inner is not None:
            return [_essential(part) for part in inner]
        return {name: value for name, value in step.items() if name not in ("trim_offsets", "prepend_scheme")}
    return step
