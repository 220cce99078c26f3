"""Parallel text: what is read, what is refused and how, and what is left out and counted."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from axon_core import AxonError, ConfigError, DataError, validate
from axon_core.text import ByteTokenizer
from axon_transformer.corpus import Corpus, normalised, read_lines, read_pairs, reversed_pairs
from axon_transformer.data import Encoded, ParallelConfig, ParallelData

PAIRS = [("ein Hund", "a dog"), ("zwei Hunde", "two dogs"), ("kein Hund", "no dog")]


def files(folder: Path, pairs: list[tuple[str, str]] = PAIRS) -> dict[str, str]:
    for name, column in (("source", 0), ("target", 1)):
        (folder / f"{name}.txt").write_text("".join(f"{pair[column]}\n" for pair in pairs), encoding="utf-8")
    return {name: str(folder / f"{name}.txt") for name in ("source", "target")}


def test_two_files_a_table_and_their_compressed_forms_are_the_same(tmp_path: Path) -> None:
    given = files(tmp_path)
    table = tmp_path / "pairs.tsv"
    table.write_text("".join(f"{source}\t{target}\n" for source, target in PAIRS), encoding="utf-8")
    for path in (*given.values(), str(table)):
        Path(f"{path}.gz").write_bytes(gzip.compress(Path(path).read_bytes()))
    packed = {name: f"{path}.gz" for name, path in given.items()}
    for corpus in (given, packed, {"tsv": str(table)}, {"tsv": f"{table}.gz"}):
        assert read_pairs(Corpus(**corpus), "train") == PAIRS


def test_a_line_ends_at_a_newline_alone(tmp_path: Path) -> None:
    """What other readers take for the end of a line would shift all lines after it."""
    lines = ["a\u2028b", "c\x85d\x0b\x0ce", "f\rg", "h"]
    path = tmp_path / "lines.txt"
    for ending in ("\n", "\r\n"):
        path.write_bytes(b"\xef\xbb\xbf" + ending.join(lines).encode() + ending.encode())
        assert read_lines(path) == lines
    path.write_text("a\n\nb")
    assert read_lines(path) == ["a", "", "b"]


def test_paths_may_name_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(tmp_path)
    monkeypatch.setenv("SOME_FOLDER", str(tmp_path))
    assert read_lines("$SOME_FOLDER/source.txt") == [source for source, _ in PAIRS]


def bad(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def test_what_cannot_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    given, file = files(tmp_path), tmp_path / "bad"
    longer = bad(tmp_path / "longer.txt", b"a\nb\nc\nd\n")
    cases = [
        ({**given, "source": str(tmp_path / "none.de")}, f"no such file: {tmp_path}/none.de"),
        ({**given, "source": "$NOT_SET/x"}, r"'\$NOT_SET/x' names an environment variable that is not set"),
        ({**given, "source": str(tmp_path)}, f"cannot read {tmp_path}: it is a folder; give a file of sentences"),
        ({**given, "source": bad(file, b"a\nb\xff\nc\n")}, "bad is not UTF-8 text: line 2 has the byte 0xff"),
        (
            {**given, "source": bad(tmp_path / "bom", b"\xef\xbb\xbfab\nc\xffd")},
            "bom is not .* line 2 has the byte 0xff",
        ),
        ({**given, "source": bad(tmp_path / "empty", b"")}, "empty is empty; give sentences"),
        ({**given, "source": bad(tmp_path / "x.gz", gzip.compress(b"a\n" * 99)[:-9])}, "cannot read .*x.gz"),
        ({**given, "target": longer}, r"source.txt has 3 and .*longer.txt 4; line i of one must be the translation"),
        (
            {"tsv": bad(tmp_path / "t.tsv", b"a\tb\nc\n")},
            "line 2 of .*t.tsv must be source, tab, target, but has no tab",
        ),
        (
            {"tsv": bad(tmp_path / "u.tsv", b"a\tb\tc\n")},
            "line 1 of .*u.tsv must be source, tab, target, but has 3 col",
        ),
    ]
    for corpus, message in cases:
        with pytest.raises(DataError, match=message) as caught:
            read_pairs(Corpus(**corpus), "train")
        assert caught.value.exit_code == 1


@pytest.mark.parametrize("given", [{}, {"source": "a"}, {"source": "a", "target": "b", "tsv": "c"}, {"target": "b"}])
def test_a_corpus_has_one_form(given: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="give source and target, or tsv, or reverse; got"):
        validate(Corpus, given)


def test_the_synthetic_task_has_at_most_a_million_pairs() -> None:
    assert validate(Corpus, {"reverse": 1_000_000}).reverse == 1_000_000
    with pytest.raises(ConfigError, match="reverse: must be less than or equal to 1000000, got 1000001"):
        validate(Corpus, {"reverse": 1_000_001})


def test_runs_of_white_space_are_one_space() -> None:
    assert normalised(" Ein\u00a0Hund\t  bellt . \u2009") == "Ein Hund bellt ."


def test_what_cannot_be_used_is_left_out_and_counted(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    pairs = [*PAIRS, ("", "x"), ("x", " \u00a0 "), ("", ""), ("x" * 20, "y"), ("y", "x" * 16)]
    with caplog.at_level(logging.WARNING, "axon"):
        encoded = Encoded.of(pairs, ByteTokenizer(), 16, "train")
    assert encoded.pairs == PAIRS
    table = tmp_path / "t.tsv"
    table.write_text("a\tb\n\n\tc\n")
    assert read_pairs(Corpus(tsv=str(table)), "train") == [("a", "b"), ("", ""), ("", "c")]
    assert caplog.messages == [
        "train data: 3 of 8 pairs left out, with an empty side (the first is pair 4)",
        "train data: 2 of 8 pairs left out, longer than the model's context of 16 tokens (the first is pair 7)",
    ]
    caplog.clear()
    assert len(Encoded.of([("x" * 15, "y" * 15)], ByteTokenizer(), 16, "train").pairs) == 1  # and the end marker
    assert not caplog.messages
    with pytest.raises(DataError, match="no pair of the valid data can be used: 1 are empty, 1 too long"):
        Encoded.of([("", "a"), ("a" * 99, "a")], ByteTokenizer(), 16, "valid")


def test_the_layout_of_sources_and_targets() -> None:
    """A source ends with the end marker; a target begins with one marker and ends with another, then comes padding."""
    encoded = Encoded.of([("ab", "c"), ("d", "efg")], ByteTokenizer(), 16, "train")
    batch = encoded.batch([0, 1])
    assert batch["source"].tolist() == [[97, 98, 257], [100, 257, -1]]
    assert batch["target"].tolist() == [[256, 99, 257, -1, -1], [256, 101, 102, 103, 257]]


def test_the_joint_vocabulary_is_learnt_from_both_languages_and_spells_what_it_does_not_know(tmp_path: Path) -> None:
    text = [line for line in topics["assignment"].splitlines() if line.strip()]
    words = [(f"der Hund {line}", f"the dog {line.lower()}") for line in text]
    corpus = Corpus(**files(tmp_path, words))
    for algorithm in ("bpe", "unigram"):
        spec = {"type": "sentencepiece", "vocab_size": 400, "algorithm": algorithm}
        settings = validate(ParallelConfig, {"train": corpus, "valid": {"reverse": 2}, "tokenizer": spec})
        tokenizer = ParallelData.load(settings).tokenizer
        for text in (*words[3], "日本 🦄 Ünïcödé"):
            assert tokenizer.decode(tokenizer.encode(text)) == text
        assert len(tokenizer.encode("der Hund")) < 8 and len(tokenizer.encode("the dog")) < 8


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        ("char", "tokenizer.type: must mark begin and end, as byte and sentencepiece do, but char does not"),
        ({"type": "sentencepiece", "vocab_size": 90000}, "sentencepiece cannot learn 90000 pieces"),
        ("morse", "tokenizer.type: must be one of byte, char, sentencepiece, pipeline, got 'morse'"),
    ],
)
def test_tokenizers_that_do_not_suit(tokenizer: object, message: str) -> None:
    settings = {"train": {"reverse": 20}, "valid": {"reverse": 2}, "tokenizer": tokenizer}
    with pytest.raises(AxonError, match=message):
        ParallelData.load(validate(ParallelConfig, settings))


def test_the_synthetic_task_reverses_and_does_not_repeat_itself() -> None:
    train, valid = reversed_pairs(300, "train"), reversed_pairs(300, "valid")
    for source, target in train + valid:
        assert target.split() == source.split()[::-1] and 3 <= len(target.split()) <= 8
    assert train == reversed_pairs(300, "train") and len(set(train) & set(valid)) < 6
