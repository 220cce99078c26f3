"""`axon tokenize`: what it reads, that its bytes depend on the files alone, and what it says of wrong ones."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from axon_core.cli import main
from axon_core.text.encoding import array_encoder, token_dtype
from axon_core.text.fingerprints import tokenizer_fingerprint
from axon_core.text.shards import passages as reading
from axon_core.text.shards import tokenizing, work
from axon_core.text.shards.folder import ShardFolder
from axon_core.text.tokenizer import ByteTokenizer, SentencePieceTokenizer, Tokenizer, train_tokenizer

WORDS = "the of a light heavy wind over under hill, and stone water. said 12 – é 🙂 漢字 a\u2581b".split()
RANDOM = random.Random(0)
TEXT = "".join(RANDOM.choice(WORDS) + RANDOM.choice(["", " ", " ", " ", "  ", "\n", "\n\n"]) for _ in range(6000))
TOKENIZERS = [
    train_tokenizer(spec, TEXT + "\x00\r\t▁")
    for spec in (
        "byte",
        "char",
        {"type": "sentencepiece", "vocab_size": 350},
        {"type": "sentencepiece", "vocab_size": 330, "algorithm": "unigram"},
    )
]
TEXTS = st.text(st.sampled_from(sorted({*TEXT})), max_size=60)


def tokenized(folder: Path) -> list[list[int]]:
    """The documents of a folder of shards, the ends of texts left out; what no document ends with comes last."""
    index = ShardFolder(folder).index
    eos = Tokenizer.load(folder).eos
    documents: list[list[int]] = [[]]
    for shard in index.shards:
        found = load_file(folder / shard.name)
        tokens, ends = found["tokens"].tolist(), found["ends"].tolist()
        assert (len(tokens), len(ends)) == (shard.tokens, shard.documents)
        for begin, end in zip([0, *ends], [*ends, len(tokens)], strict=True):
            documents[-1] += tokens[begin:end]
            if end in ends:
                documents.append([])
    return [[token for token in document if token != eos] for document in documents if document]


def texts(folder: Path) -> list[str]:
    tokenizer = Tokenizer.load(folder)
    return [tokenizer.decode(document) for document in tokenized(folder)]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def run(*words: object) -> int:
    return main(["tokenize", *map(str, words)])


def write_lines(path: Path, documents: list[str], field: str = "text") -> Path:
    lines = "".join(json.dumps({"id": i, field: text}) + "\n" for i, text in enumerate(documents))
    path.write_text(lines, encoding="utf-8")
    return path


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda t: f"{t.type} {t.vocab_size}")
@settings(max_examples=200)
@given(parts=st.lists(TEXTS, min_size=1, max_size=4))
def test_arrays_are_the_ids_of_encode_and_passages_join(tokenizer: Tokenizer, parts: list[str]) -> None:
    encode = array_encoder(tokenizer)
    lines = [f"{part}\n" for part in parts[:-1]] + parts[-1:]
    found = np.concatenate([encode(text, i == 0) for i, text in enumerate(lines)])
    assert found.tolist() == tokenizer.encode("".join(lines))
    assert found.dtype == np.uint16


def test_a_model_that_rewrites_texts_or_spans_words_is_left_to_the_library() -> None:
    import io

    import sentencepiece

    texts = ["a  b\u3000c", "ﬁ ne", " a", "", "x y x y", "a\nb"]
    for options in ({}, {"split_by_whitespace": False, "normalization_rule_name": "identity"}):
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXT.splitlines() * 3),
            model_writer=model,
            model_type="bpe",
            vocab_size=350,
            byte_fallback=True,
            minloglevel=2,
            **options,
        )
        tokenizer = SentencePieceTokenizer(model.getvalue())
        encode = array_encoder(tokenizer)
        for text in [*texts, *TEXT.splitlines()[:200]]:
            assert encode(text, True).tolist() == tokenizer.encode(text), (options, text)


def test_ids_take_two_bytes_as_long_as_they_fit() -> None:
    assert token_dtype(65_536) == np.uint16 and token_dtype(65_537) == np.uint32


def test_fingerprints_tell_tokenizers_apart() -> None:
    assert len({tokenizer_fingerprint(tokenizer) for tokenizer in TOKENIZERS}) == len(TOKENIZERS)
    assert tokenizer_fingerprint(ByteTokenizer()) == tokenizer_fingerprint(ByteTokenizer())


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", [".txt", ".jsonl"])
def test_packed_or_not_the_documents_are_those_of_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, packing: str
) -> None:
    monkeypatch.setattr(reading, "PASSAGE", 512)
    documents = [TEXT[i : i + 997] for i in range(0, 20_000, 997)]
    plain = tmp_path / f"a{kind}"
    if kind == ".txt":
        documents = [TEXT]
        plain.write_text(TEXT, encoding="utf-8")
    else:
        write_lines(plain, documents)
    data = plain.read_bytes()
    halves = [data[: len(data) // 3], data[len(data) // 3 :]]
    if packing == ".gz":
        (tmp_path / f"a{kind}.gz").write_bytes(b"".join(map(gzip.compress, halves)))
    if packing == ".zst":
        zstandard = pytest.importorskip("zstandard")
        pack = zstandard.ZstdCompressor().compress
        (tmp_path / f"a{kind}.zst").write_bytes(b"".join(map(pack, halves)))
    out = tmp_path / "out"
    assert run(tmp_path / f"a{kind}{packing}", "--tokenizer", "byte", "--out", out, "--shard-bytes", 4000) == 0
    assert texts(out) == documents
    index = ShardFolder(out).index
    assert len(index.shards) >= 3 and index.documents == len(documents)
    assert index.text_bytes == sum(len(text.encode()) for text in documents)


def test_a_table_is_read_row_by_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    documents = [TEXT[i : i + 100] for i in range(0, 9000, 100)]
    columns = {"meta": [{"a": 1, "b": 2}] * 90, "words": [*documents[:-1], None]}
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=7)
    line = (tmp_path, "--tokenizer", "byte", "--out", tmp_path / "out", "--shard-bytes", 2048)
    assert run(*line) == 1
    assert "has no column 'text'; its columns are meta, words" in capsys.readouterr().err
    assert run(*line, "--field", "meta") == 1
    assert "must hold texts" in capsys.readouterr().err
    assert run(*line, "--field", "words") == 1
    assert "has no text in the column 'words'" in capsys.readouterr().err
    line = (*line[:4], tmp_path / "other", *line[5:])
    assert run(*line, "--field", "words", "--skip-invalid") == 0
    assert texts(tmp_path / "other") == documents[:-1]
    assert ShardFolder(tmp_path / "other").index.left_out == 1
    assert len(ShardFolder(tmp_path / "other").index.shards) > 3


def test_spans_cut_between_lines_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PASSAGE", 64)
    text = "\ufeff" + TEXT[:3000] + "é🙂漢" * 700 + "\r\n" + TEXT[3000:5000] + "\n\n\nend"
    (tmp_path / "a.txt").write_bytes(text.encode())
    for size in (1024, 1500, 2500, 99_999):
        out = tmp_path / f"out{size}"
        assert run(tmp_path / "a.txt", "--tokenizer", "byte", "--out", out, "--shard-bytes", size) == 0
        assert texts(out) == [text.removeprefix("\ufeff").replace("\r\n", "\n")]


def test_a_shard_that_is_removed_meanwhile_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As by a process of a killed call, which takes what it did not write for the remains of another tokenizer."""
    (tmp_path / "a.txt").write_text(TEXT * 4, encoding="utf-8")
    line = (tmp_path / "a.txt", "--tokenizer", "byte", "--shard-bytes", 2000)
    assert run(*line, "--out", tmp_path / "one") == 0
    rounds, whole = [], tokenizing.run_units

    def disturbed(job, pending, processes):
        yield from whole(job, pending, processes)
        rounds.append(sorted(pending))
        if len(rounds) < 3:
            sorted(job.folder.glob("00001-*.safetensors"))[-1].unlink()

    monkeypatch.setattr(tokenizing, "run_units", disturbed)
    assert run(*line, "--out", tmp_path / "two") == 0
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert len(rounds[0]) > 2 and rounds[1:] == [[1], [1]]


def test_the_bytes_depend_on_neither_processes_nor_a_kill(tmp_path: Path) -> None:
    files = tmp_path / "in"
    files.mkdir()
    for name in "abc":
        write_lines(files / f"{name}.jsonl", [TEXT[i : i + 300] for i in range(0, len(TEXT), 300)])
    (files / "d.jsonl.gz").write_bytes(gzip.compress((files / "a.jsonl").read_bytes()))
    (files / "e.txt").write_text(TEXT, encoding="utf-8")
    spec = "{type='sentencepiece', vocab_size=350}"
    line = ("in", "--tokenizer", spec, "--shard-bytes", 6000, "--out")
    cwd = os.getcwd()
    try:
        os.chdir(tmp_path)
        assert run(*line, "one") == 0 and run(*line, "two", "--processes", 2) == 0
        assert contents(Path("one")) == contents(Path("two"))
        command = [sys.executable, "-c", "from axon_core.cli import main; raise SystemExit(main())", "tokenize"]
        words = [*command, *map(str, line), "three", "--processes", "2"]
        kills = 0
        for _ in range(3):
            process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            seen, begun = len(list(Path().glob("three/0*"))), time.monotonic()
            while process.poll() is None and len(list(Path().glob("three/0*"))) < seen + 4:
                assert time.monotonic() - begun < 60
                time.sleep(0.002)
            kills += process.poll() is None
            process.send_signal(signal.SIGKILL)
            process.wait()
            if (Path("three") / "index.json").exists():
                break
        assert kills >= 2
        assert run(*line, "three") == 0
        assert contents(Path("three")) == contents(Path("one"))
        assert run(*line, "three") == 0  # complete: nothing is done
    finally:
        os.chdir(cwd)


def test_a_unit_continues_after_its_last_whole_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(write_lines(tmp_path / "a", [TEXT[i : i + 90] for i in range(9000)]).read_bytes()))
    line = (packed, "--tokenizer", "byte", "--shard-bytes", 60_000, "--out")
    assert run(*line, tmp_path / "whole") == 0
    encode = work.PassageEncoder.__call__
    calls = []

    def failing(self: work.PassageEncoder, passage: reading.Passage) -> object:
        calls.append(passage)
        if len(calls) == 5000:
            raise KeyboardInterrupt
        return encode(self, passage)

    monkeypatch.setattr(work.PassageEncoder, "__call__", failing)
    assert run(*line, tmp_path / "parts") == 130
    kept = {name: data for name, data in contents(tmp_path / "parts").items() if name.startswith("0")}
    assert len(kept) == 4 and not list((tmp_path / "parts").glob(".*"))
    assert run(*line, tmp_path / "parts") == 0
    assert len(calls) < 5000 + 6000  # the passages of finished shards are not encoded again
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


LINES = b'{"text": "one"}\n\n{"text": "two"}\n'


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (LINES + b'{"text": "thr', "line 4 of {file} is not JSON: Unterminated string"),
        (LINES + b"[1]\n", 'line 4 of {file} must be a JSON object such as {{"text": …}}, got [1]'),
        (
            LINES + b'{"body": "x", "id": 3}',
            "line 4 of {file} has no field 'text'; its fields are body, id: choose one",
        ),
        (LINES + b'{"text": 3}', "line 4 of {file} must have a text in the field 'text', got 3"),
        (LINES + b'{"text": "caf\xe9"}', "line 4 of {file} is not UTF-8 text: byte 14 is 0xe9"),
        (LINES + b"[" * 99_999, "line 4 of {file}"),
        (LINES + b'{"text": "\\ud800"}', "line 4 of {file} cannot be encoded: the text has a lone surrogate"),
    ],
)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_wrong_line_is_named_or_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes, message: str, processes: int
) -> None:
    if processes == 2 and b"[1]" not in data:
        return
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.txt").write_text("zero")
    file = tmp_path / "in" / "a.jsonl"
    file.write_bytes(data)
    line = (tmp_path / "in", "--tokenizer", "byte", "--processes", processes, "--shard-bytes", 1024)
    assert run(*line, "--out", tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert message.format(file=file) in said and "--skip-invalid" in said and "Traceback" not in said
    assert run(*line, "--out", tmp_path / "skipped", "--skip-invalid", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["documents"], facts["left_out"], facts["tokens"]) == (3, 1, 13)
    assert texts(tmp_path / "skipped") == ["zero", "one", "two"]


@pytest.mark.parametrize("processes", [1, 2])
def test_the_number_of_a_wrong_line_counts_from_the_beginning_of_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], processes: int
) -> None:
    file = tmp_path / "a.jsonl"
    write_lines(file, ["abc " * 9] * 500)
    with file.open("a") as lines:
        lines.write("nothing\n")
    line = (file, "--tokenizer", "byte", "--shard-bytes", 2000, "--processes", processes, "--out", tmp_path / "out")
    assert run(*line) == 1
    assert f"line 501 of {file} is not JSON" in capsys.readouterr().err
    with file.open("r+b") as lines:
        lines.truncate(file.stat().st_size - 8)
    assert run(*line) == 2  # another file now
    assert "files that have changed since" in capsys.readouterr().err


def test_wrong_files_and_requests_end_with_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(code: int, message: str, *words: object, tokenizer: str = "byte", out: str = "out") -> None:
        assert run(*words, "--tokenizer", tokenizer, "--out", tmp_path / out) == code
        said = capsys.readouterr().err
        assert message in said and "bug" not in said and "Traceback" not in said, said

    good, empty, latin = tmp_path / "good.txt", tmp_path / "empty.txt", tmp_path / "latin.txt"
    good.write_text("good text", encoding="utf-8")
    empty.write_bytes(b"")
    latin.write_bytes(b"caf\xe9")
    told(1, "no such file or folder", tmp_path / "none.txt")
    told(1, "empty.txt is empty; leave it out", empty)
    told(1, "latin.txt is not UTF-8 text: byte 4 is 0xe9", latin)
    told(2, "is given twice", good, good)
    told(2, "--tokenizer must be a folder with a saved model", good, tokenizer="bite", out="w1")
    told(2, "vocab_size", good, tokenizer="{type='sentencepiece', vocab_size=3}", out="w")
    told(2, "is not a table in TOML", good, tokenizer="{type=", out="w3")
    told(2, "must be a sentencepiece model", good, tokenizer="none.model", out="w4")
    told(1, "no tokenizer in", good, tokenizer=str(tmp_path), out="w5")
    for name, data in {"a.jsonl.gz": gzip.compress(b'{"text": "a"}' * 99)[:-9], "b.txt.gz": b"abc"}.items():
        (tmp_path / name).write_bytes(data)
        told(1, f"cannot read {tmp_path / name}", tmp_path / name, out=name[0])
    zstandard = pytest.importorskip("zstandard")
    packed = zstandard.ZstdCompressor().compress(LINES * 999)
    for name, data in {"c.jsonl.zst": packed[:-5], "d.jsonl.zst": b"abc", "e.jsonl.zst": packed + packed[:9]}.items():
        (tmp_path / name).write_bytes(data)
        told(1, f"cannot read {tmp_path / name}", tmp_path / name, out=f"{name[0]}2")
    (tmp_path / "f.parquet").write_bytes(b"PAR1 no")
    told(1, "f.parquet as parquet", tmp_path / "f.parquet", out="f")
    (tmp_path / "blank.jsonl").write_text("\n\n")
    told(1, "there is no text in", tmp_path / "blank.jsonl", out="g")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    told(2, "is not empty, and nothing is overwritten", good, out="full")
    assert run(good, "--tokenizer", "byte", "--out", tmp_path / "done") == 0
    told(2, "has the shards of other files or options", latin, out="done")
    told(1, "cannot write", good, out="good.txt/x")
    assert not list(tmp_path.glob("*/.unfinished*"))


def test_an_interrupted_folder_continues_only_with_the_same_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_lines(tmp_path / "a.jsonl", ["x"])
    with file.open("a") as lines:
        lines.write("wrong\n")
    line = (file, "--tokenizer", "byte", "--out", tmp_path / "out")
    assert run(*line) == 1
    assert run(*line, "--field", "body") == 2
    assert "was begun with field = 'text', and is now asked for with 'body'" in capsys.readouterr().err


def test_a_document_begins_and_ends_with_the_markers_that_its_tokenizer_has(tmp_path: Path) -> None:
    model = next(t for t in TOKENIZERS if isinstance(t, SentencePieceTokenizer)).model
    tokenizer = SentencePieceTokenizer(model, add_bos=True)
    tokenizer.save(tmp_path / "tokenizer")
    file = write_lines(tmp_path / "a.jsonl", ["one", "", "two\nthree"])
    assert run(file, "--tokenizer", tmp_path / "tokenizer", "--out", tmp_path / "out") == 0
    index = ShardFolder(tmp_path / "out").index
    found = load_file(tmp_path / "out" / index.shards[0].name)
    wanted = [tokenizer.encode(text, bos=True, eos=True) for text in ("one", "two\nthree")]
    assert found["tokens"].tolist() == wanted[0] + wanted[1]
    assert found["ends"].tolist() == [len(wanted[0]), len(wanted[0] + wanted[1])]


def test_progress_says_how_much_of_the_files_has_been_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_lines(tmp_path / "a.jsonl", ["x" * 90] * 900)
    assert run(file, "--tokenizer", "byte", "--out", tmp_path / "out") == 0
    size = -(-file.stat().st_size // 1000)
    assert capsys.readouterr().err.count(f"kB {size}/{size}") == 1


def test_tokenizing_loads_no_torch(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    code = "from axon_core.cli import main; import sys; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    words = ["tokenize", tmp_path / "a.txt", "--tokenizer", "byte", "--out", tmp_path / "out"]
    subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True)
