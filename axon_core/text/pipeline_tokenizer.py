"""Tokenizers of Hugging Face's `tokenizer.json`, run by the tokenizers library, as tables of pieces like all others."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from pydantic import Field

from axon_core.checkpoint.atomic import atomic_file
from axon_core.checkpoint.manifest import add_to_manifest, read_checked
from axon_core.documents import parse_json
from axon_core.errors import ConfigError, DataError, first_line
from axon_core.json_text import to_json
from axon_core.registry.optional import import_optional
from axon_core.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers

__all__ = ["PIPELINE", "PipelineTokenizer", "byte_characters"]

PIPELINE = "tokenizer.pipeline.json"
"""The file that holds the pipeline in a model folder; `tokenizer.json` there is Axon's own."""
_SPACE = "▁"
_SPREAD = 10  # ids for each token, at most: each costs memory, also where there is no token


class PipelineTokenizer(Tokenizer):
    """The pipeline of a `tokenizer.json`: normaliser, splitter, and byte-level or byte-fallback pieces (BPE, unigram).

    Ids are those of the tokenizers library. The markers that were added to the vocabulary, such as `<|im_end|>`, are
    ids only: a text that contains their characters encodes to other tokens (`encode`), so that no user can speak as
    somebody else. A chat template's own text is encoded by `encode_marked`, which knows them. Added tokens of white
    space are no markers. Steps that cut or pad a text are left out.

    Args:
        pipeline: the content of a `tokenizer.json`.
        bos: the id that begins a text, or None.
        eos: the id that ends one, or None.
        add_bos: whether a prompt begins with `bos`.
        other_ends: further ids that end a text.
        chat_template: how a dialogue is written for the model, in Jinja's language; empty if that is not known.

    Raises:
        ValueError: it is malformed, decodes tokens in a way that is not known, or has ids far above its number of
            tokens.
        UsageError: the tokenizers library is not installed.
    """

    class Config(Tokenizer.Config):
        """Which pipeline to use."""

        path: Path = Field()
        """An existing `tokenizer.json`."""

    type = "pipeline"

    def __init__(
        self,
        pipeline: bytes,
        *,
        bos: int | None = None,
        eos: int | None = None,
        add_bos: bool = False,
        other_ends: Iterable[int] = (),
        chat_template: str = "",
    ) -> None:
        values: Any = parse_json(pipeline.decode("utf-8-sig"), parse_int=int)
        if not isinstance(values, dict) or not isinstance(values.get("model"), dict):
            raise ValueError("it has no model; is it a tokenizer.json of the tokenizers library?")
        values = {**cast("dict[str, Any]", values), "truncation": None, "padding": None, "post_processor": None}
        self.pipeline, self.chat_template = pipeline, chat_template
        added = _added(values)
        self.markers = {text: token for text, (token, special) in added.items() if special or text.strip()}
        """The texts of markers, and their ids."""
        self.special = frozenset(text for text, (_, special) in added.items() if special)
        """The markers that decode to nothing."""
        self._marked = _built(values)
        self._plain = _built({**values, "added_tokens": _hidden(values, self.markers)})
        self._forbidden = frozenset(self.markers.values())
        vocabulary = self._marked.get_vocab(with_added_tokens=True)
        decoder, self.drops_spaces = _decoder(values)
        pieces = [b""] * _size(vocabulary)
        for text, token in vocabulary.items():
            pieces[token] = b"" if text in self.special else decoder(text)
        super().__init__(pieces)
        self.spaced = frozenset(token for token, piece in enumerate(pieces) if piece.startswith(b" "))
        for name, token in (("bos", bos), ("eos", eos)):
            if token is not None and not 0 <= token < len(pieces):
                raise ValueError(f"{name} must be one of its {len(pieces)} tokens, got {token}")
        if add_bos and bos is None:
            raise ValueError("add_bos needs a bos token, but it has none")
        self.bos, self.eos, self.add_bos = bos, eos, add_bos
        self.other_ends = frozenset(other_ends) & {*range(len(pieces))} - {eos}

    @classmethod
    def train(cls, text: str, config: Config) -> Self:
        """Read the pipeline at `config.path`; nothing is learned from `text`.

        Raises:
            ConfigError: it cannot be read.
        """
        try:
            return cls(config.path.expanduser().read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigError([(("path",), f"must be a tokenizer.json, got {config.path} ({error})")]) from None

    def name(self, token: int | None) -> str:
        """Return the text of a marker; empty if there is none."""
        return next((text for text, found in self.markers.items() if found == token), "")

    def encode_marked(self, text: str) -> list[int]:
        """Return the ids of a text of one's own, such as a rendered chat template, in which markers are their ids.

        Raises:
            DataError: the text has a lone surrogate.
        """
        return self._ids(self._marked, text)

    def _encode(self, text: str) -> list[int]:
        ids = self._ids(self._plain, text)
        if not self._forbidden.isdisjoint(ids):  # the vocabulary itself has a marker, and finds it
            found = next(marker for marker, token in self.markers.items() if token in ids)
            raise DataError(f"the text contains {found!r}, which is a marker of this tokenizer; leave it out")
        return ids

    @staticmethod
    def _ids(pipeline: tokenizers.Tokenizer, text: str) -> list[int]:
        text.encode()  # raises for a lone surrogate, for which the library has another error
        with _raising(DataError, "the tokenizer cannot encode the text"):
            return pipeline.encode(text, add_special_tokens=False).ids

    def _state(self, folder: Path) -> dict[str, Any]:
        with atomic_file(folder / PIPELINE) as draft:
            draft.write_bytes(self.pipeline)
        add_to_manifest(folder, PIPELINE)
        return {
            "bos": self.bos,
            "eos": self.eos,
            "add_bos": self.add_bos,
            "other_ends": sorted(self.other_ends),
            "chat_template": self.chat_template,
        }

    @classmethod
    def _restore(cls, state: Mapping[str, Any], folder: Path) -> Self:
        return cls(
            read_checked(folder / PIPELINE),
            bos=_token(state.get("bos")),
            eos=_token(state.get("eos")),
            add_bos=state.get("add_bos") is True,
            other_ends=state.get("other_ends", []),
            chat_template=str(state.get("chat_template", "")),
        )


def byte_characters() -> dict[int, str]:
    """Return the printable character that stands for each byte in byte-level vocabularies.

    The bytes that are printable in Latin-1 stand for themselves; the others have the characters from U+0100 on, in
    their order. Source: the tokenizers library's `ByteLevel`, after GPT-2's code.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _added(values: Mapping[str, Any]) -> dict[str, tuple[int, bool]]:
    """Return the added tokens: id, and whether it is special. Raises `ValueError` if they are malformed."""
    found: dict[str, tuple[int, bool]] = {}
    tokens: Any = values.get("added_tokens") or []
    if not isinstance(tokens, list):
        raise ValueError(f"added_tokens must be a list, got {tokens!r:.80}")
    for token in cast("list[Any]", tokens):
        match token:
            case {"content": str(content), "id": int(number)} if content and number >= 0:
                found[content] = number, token.get("special") is True
            case _:
                raise ValueError(f"an added token must have an id and a content, got {token!r:.80}")
    return found


def _hidden(values: Mapping[str, Any], markers: Collection[str]) -> list[dict[str, Any]]:
    """Return the added tokens with markers under names that no text has.

    They cannot just be left out: the library numbers those that the model's own vocabulary lacks in their order,
    whatever id they give (tokenizers 0.23).
    """
    vocabulary: Any = values["model"].get("vocab")
    own: Collection[str] = vocabulary if isinstance(vocabulary, dict) else [piece for piece, _ in vocabulary or []]
    own = frozenset(own)
    found: list[dict[str, Any]] = []
    for token in values.get("added_tokens") or []:
        if token["content"] not in markers:
            found.append(token)
        elif token["content"] not in own:
            found.append({**token, "content": f"\U0010ffff{token['id']}\U0010fffe", "normalized": False})
    return found


def _built(values: Mapping[str, Any]) -> tokenizers.Tokenizer:
    library: Any = import_optional("tokenizers", "tokenizers")
    with _raising(ValueError, "the tokenizers library refuses it"):
        return library.Tokenizer.from_str(to_json(dict(values), ensure_ascii=False))


@contextmanager
def _raising(kind: type[Exception], what: str) -> Generator[None]:
    """Raise an error of this kind for any of the library in the block, which has none that are more specific."""
    try:
        yield
    except BaseException as error:
        # What its Rust code panics with is no `Exception`, and has no public name.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise kind(f"{what}: {first_line(error)}") from None


def _size(vocabulary: Mapping[str, int]) -> int:
    """Return how many ids there are, gaps included. Raises `ValueError` if nearly all are gaps."""
    highest, most = max(vocabulary.values(), default=-1), _SPREAD * len(vocabulary) + 1000
    if highest > most:
        raise ValueError(
            f"its highest token id must be at most {most:,} ({_SPREAD} times its {len(vocabulary):,} tokens, plus "
            f"1,000), got {highest:,}"
        )
    return highest + 1


def _decoder(values: Mapping[str, Any]) -> tuple[Any, int]:
    """Return the function from a token's text to its bytes, and how many pieces may begin with the encoder's space."""
    steps = _steps(values.get("decoder"))
    kinds = [str(step.get("type")) for step in steps]
    if kinds and set(kinds) <= {"ByteLevel", "Fuse"} and "ByteLevel" in kinds:
        return _byte_level, 0
    if kinds == ["Fuse"]:
        return str.encode, 0
    replaced = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    if steps and steps[0] == replaced and set(kinds[1:]) <= {"ByteFallback", "Fuse", "Strip"}:
        strips = [step for step in steps if step["type"] == "Strip"]
        if all(step == {"type": "Strip", "content": " ", "start": 1, "stop": 0} for step in strips) and len(strips) < 2:
            falls_back = "ByteFallback" in kinds
            return partial(_spaced, falls_back=falls_back), len(strips)
    raise ValueError(f"its decoder is not known: {' then '.join(kinds) or 'none'}")


def _steps(step: Any) -> list[dict[str, Any]]:
    if not isinstance(step, dict):
        return []
    step = cast("dict[str, Any]", step)
    inner: Collection[Any] | None = step.get("decoders") if step.get("type") == "Sequence" else None
    return [step] if inner is None else [found for part in inner for found in _steps(part)]


_BYTES = {character: byte for byte, character in byte_characters().items()}


def _byte_level(text: str) -> bytes:
    try:
        return bytes([_BYTES[character] for character in text])
    except KeyError:  # an added token, which the library takes as it stands
        return text.encode()


def _spaced(text: str, falls_back: bool) -> bytes:
    if falls_back and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        try:
            return bytes([int(text[3:5], 16)])
        except ValueError:
            pass
    return text.replace(_SPACE, " ").encode()


def _token(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
