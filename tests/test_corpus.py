"""Text data: what is read, how it is split, and that sampling covers it, in an order known at every step."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from axon_core.cli import main
from axon_core.errors import ConfigError, DataError
from axon_core.randomness import Key
from axon_core.text.corpus import TextData, Windows, read_text
from axon_core.text.tokenizer import ByteTokenizer, Tokenizer

SIZES = st.tuples(st.integers(1, 9), st.integers(0, 60)).map(lambda pair: (pair[0], pair[0] + 1 + pair[1]))


@given(SIZES, st.integers(0, 3))
def test_an_epoch_has_each_token_as_target_once_but_for_the_ends(sizes, epoch: int):
    context, length = sizes
    windows = Windows(torch.arange(length), context, Key((0,)))
    rows = torch.cat([windows.batch(epoch * windows.per_epoch + i, 1) for i in range(windows.per_epoch)])
    assert torch.equal(rows, rows[:, :1] + torch.arange(context + 1))  # each is a piece of the text
    targets = rows[:, 1:].flatten().tolist()
    assert len(set(targets)) == len(targets)
    assert max(targets) < length
    assert length - 1 - len(targets) < 2 * context  # what the random offset leaves out at both ends


@given(SIZES, st.integers(1, 7), st.integers(0, 40))
def test_a_step_may_be_asked_for_at_any_time_and_in_any_size(sizes, size: int, step: int):
    context, length = sizes
    windows = Windows(torch.arange(length), context, Key((3,)))
    one_by_one = torch.cat([windows.batch(step * size + i, 1) for i in range(size)])
    assert torch.equal(Windows(torch.arange(length), context, Key((3,))).batch(step, size), one_by_one)


def test_windows_begin_everywhere_and_in_another_order_each_epoch():
    windows = Windows(torch.arange(1000), 10, Key((0,)))
    epochs = [windows.batch(epoch, windows.per_epoch)[:, 0] for epoch in range(100)]
    assert {int(starts[0] % 10) for starts in epochs} == set(range(10))
    assert len({tuple(starts.tolist()) for starts in epochs}) == 100
    assert not torch.equal(epochs[0], Windows(torch.arange(1000), 10, Key((1,))).batch(0, windows.per_epoch)[:, 0])


@given(st.integers(2, 60), st.integers(1, 12), st.integers(1, 5))
def test_evaluation_scores_each_held_out_token_after_the_first_once(length: int, context: int, size: int):
    data = TextData(ByteTokenizer(), torch.arange(3), torch.arange(length, dtype=torch.int32))
    batches = list(data.held_out_batches(context, size))
    targets = torch.cat([batch[:, 1:].flatten() for batch in batches])
    assert targets.sort().values.tolist() == list(range(1, length))
    assert all(torch.equal(batch[:, 1:], batch[:, :-1] + 1) for batch in batches)
    assert all(len(batch) <= size and batch.shape[1] <= context + 1 for batch in batches)


def test_the_end_of_the_text_is_held_out_and_its_bytes_are_counted(tmp_path: Path):
    file = tmp_path / "text.txt"
    file.write_text("0123456é8€")
    data = TextData.load({"path": str(file), "held_out": 0.3})
    assert data.tokenizer.decode(data.train.tolist()) == "0123456"
    assert data.tokenizer.decode(data.held_out.tolist()) == "é8€"
    assert data.held_out_bytes == 4  # "8€"


def test_a_saved_tokenizer_is_used_as_it_is():
    text = "abcd" * 20
    first = TextData.of(text)
    assert torch.equal(TextData.of(text, first.tokenizer).train, first.train)
    assert TextData.of(text, ByteTokenizer()).train.tolist() == list(text[:72].encode())
    assert isinstance(first.tokenizer, Tokenizer)


def test_folders_are_read_in_the_order_of_their_names(tmp_path: Path):
    for name, text in (("b.txt", "second"), ("a.txt", "\ufefffirst\r\nline"), ("sub/c.txt", "third"), (".git", "no")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert read_text(tmp_path) == "first\nline\nsecond\nthird"


def test_left_out_it_is_pythons_own_reference():
    text = read_text()
    assert len(text) > 400_000 and 'The "if" statement is used for conditional execution' in text


def test_variables_in_a_path_are_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "text.txt").write_text("hello")
    monkeypatch.setenv("SOME_FOLDER", str(tmp_path))
    assert read_text("$SOME_FOLDER/text.txt") == "hello"
    monkeypatch.delenv("SOME_FOLDER")
    with pytest.raises(DataError, match=r"'\$SOME_FOLDER/text.txt' names an environment variable that is not set"):
        read_text("$SOME_FOLDER/text.txt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file or folder: .*text.txt"),
        (b"", "has no text"),
        (b" \n ", "has no text"),
        (b"caf\xe9", "text.txt is not UTF-8 text: byte 4 is 0xe9"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, content, message):
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_text(file)


def put(folder: Path, **files: str | bytes):
    for name, content in files.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content if isinstance(content, bytes) else content.encode())


def test_of_a_folder_text_files_are_read_and_one_line_names_the_others(tmp_path: Path, caplog):
    kept = {"B.TXT": "1", "LICENSE": "2", "a/z.rst": "3", "a.md": "4", "b.utf-8": "5"}
    others = {"z.json": "{}", "a/cover.png": b"\x89PNG", "zz.py": "x = 1", "zzz.npy": b"\x93", ".DS_Store": b"\xff"}
    put(tmp_path, **kept, **others)
    (tmp_path / "old").symlink_to(tmp_path / "a", target_is_directory=True)  # read once, not twice
    assert read_text(tmp_path) == "1\n2\n3\n4\n5"
    [record] = caplog.records
    assert record.getMessage() == (
        f"{tmp_path}: a/cover.png, old, z.json and 2 more left out; the suffix of text must be one of "
        ".markdown, .md, .rst, .text, .txt, .utf-8, .utf8, none"
    )
    assert record.levelname == "WARNING"


def test_a_folder_of_text_alone_says_nothing_and_a_file_given_by_its_name_may_have_any_suffix(tmp_path: Path, caplog):
    put(tmp_path, **{"a.txt": "text", ".hidden/b.json": "{}", "sub/.c.json": "{}"})
    assert read_text(tmp_path) == "text"
    put(tmp_path, **{"code.py": "x = 1"})
    assert read_text(tmp_path / "code.py") == "x = 1"
    assert not caplog.records


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {},
            "has no text: the suffix must be one of .*, but there is no visible file; rename the files, "
            "or give another folder",
        ),
        ({".git/x.txt": "no"}, "there is no visible file"),
        ({"a.json": "", "sub/b\n.png": ""}, r"the suffix .*\.txt.*, but there is only a.json, sub/b\\n.png; rename"),
        ({f"{i}.json": "" for i in range(9)}, r"there is only 0.json, 1.json, 2.json and 6 more"),
        ({"a.txt": " \n"}, "has no text; give a UTF-8 text file"),
    ],
)
def test_a_folder_without_text_is_refused_with_what_is_there(tmp_path: Path, files, message):
    put(tmp_path, **files)
    with pytest.raises(DataError, match=message):
        read_text(tmp_path)


def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    put(tmp_path, **{"a.txt": "text", "sub/b.txt": "more"})
    scandir = os.scandir

    def denied(place):
        if Path(place).name == "sub":
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", denied)  # the superuser may read whatever the mode says
    with pytest.raises(DataError, match=r"cannot read the folder .*sub: Permission denied"):
        read_text(tmp_path)


def test_a_text_shorter_than_the_context_is_refused():
    with pytest.raises(
        DataError, match=r"at least context \+ 1 = 9 tokens, got 8; give more text or .* shorter context"
    ):
        Windows(torch.arange(8), 8, Key((0,)))
    with pytest.raises(DataError, match="held-out part must have at least 2 tokens, got 1"):
        TextData.of("0123456789")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pth": "x"}, "pth: unknown field 'pth' \\(did you mean 'path'\\?\\)"),
        ({"held_out": 1.5}, "held_out: must be less than 1, got 1.5"),
        ({"tokenizer": "morse"}, "tokenizer.type: must be one of byte, char, sentencepiece, pipeline, got 'morse'"),
    ],
)
def test_settings_that_break_a_rule(values, message):
    with pytest.raises(ConfigError, match=message):
        TextData.load(values)


def test_noise_belongs_to_the_example_not_to_the_batch():
    key = Key((0, 5))("noise")
    whole = key.normal(range(6), (3,))
    assert torch.equal(key.normal([4, 2], (3,)), whole[[4, 2]])
    assert len({row.sum().item() for row in whole}) == 6


def test_keys_are_stable_across_machines_and_independent():
    assert Key((0, 1, "dropout")).seed == Key((0,))(1)("dropout").seed
    assert len({Key(parts).seed for parts in [(0, 1), (1, 0), (0, "1"), ("01",), (0,), (0, 1, 0)]}) == 6
    numbers = Key((0,))("a").normal(range(2000), ())
    assert abs(numbers.mean()) < 0.1 and abs(numbers.std() - 1) < 0.1


def test_the_very_last_token_is_sampled_too():
    windows = Windows(torch.arange(191), 64, Key((0,)))
    assert max(windows.batch(epoch, windows.per_epoch).max().item() for epoch in range(300)) == 190


def test_hidden_folders_are_passed_over(tmp_path: Path):
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "index").write_bytes(b"\xff\xfe")
    (tmp_path / "a.txt").write_text("text", encoding="utf-8")
    assert read_text(tmp_path) == "text"


def test_rows_are_not_learned_as_text_unless_their_field_is_named(tmp_path: Path):
    lines = '{"id": 1, "body": "one\\r\\ntwo"}\n\n{"id": 2, "body": "three"}\n'
    rows = tmp_path / "rows.jsonl"
    rows.write_text(lines)
    with pytest.raises(DataError, match=r"rows\.jsonl holds rows, .*: line 1 of .* has the fields 'id', 'body'"):
        read_text(rows)
    with pytest.raises(DataError, match=r"data\.text_field = 'text', or use a trainer of such rows"):
        TextData.load({"path": str(write(tmp_path / "b.ndjson", '{"id": 1, "text": "x"}'))})
    assert read_text(rows, "body") == "one\ntwo\nthree"
    assert TextData.load({"path": str(rows), "text_field": "body"}).tokenizer.vocab_size == len(set("one\ntwo\nthree"))
    assert read_text(write(tmp_path / "a.json", '[{"body": "one"}, {"body": "two"}]'), "body") == "one\ntwo"
    with pytest.raises(DataError, match=r"a\.json holds rows, not plain text: row 1 of"):
        read_text(tmp_path / "a.json")
    config = write(tmp_path / "config.json", '{\n "a": 1\n}')
    assert read_text(config) == '{\n "a": 1\n}'  # JSON, but of no rows


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": 3}', r"line 1 of .* must have a text in the field 'text', but has 3 there"),
        ('{"body": "x"}', r"line 1 of .* must have a text in the field 'text', but has the field 'body'"),
        ("[1]", r"line 1 of .* must be a JSON object"),
        ('{"text": " "}', "has no text"),
    ],
)
def test_rows_without_the_named_text_are_refused(line: str, message: str, tmp_path: Path):
    with pytest.raises(DataError, match=message):
        read_text(write(tmp_path / "a.jsonl", line), "text")
    with pytest.raises(DataError, match=r"data\.text_field needs a file of rows .* is none; leave text_field out"):
        read_text(write(tmp_path / "a.txt", "text"), "text")


def write(file: Path, text: str) -> Path:
    file.write_text(text)
    return file


def test_a_validation_part_is_read_instead_of_the_held_out_part_which_nothing_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "text.txt"
    file.write_text("abcdefgh" * 90 + "VW" * 40 + "XYZ?" * 50)  # 800 characters, then 200 that are held out
    values = {"path": str(file), "held_out": 0.2, "validation": 0.1}
    data, plain = TextData.load(values), TextData.load({**values, "validation": None})
    decode = data.tokenizer.decode
    assert decode(data.train.tolist()) == "abcdefgh" * 90 and decode(data.held_out.tolist()) == "VW" * 40
    assert plain.tokenizer.decode(plain.held_out.tolist()) == "XYZ?" * 50
    assert data.tokenizer.vocab_size == plain.tokenizer.vocab_size - 4  # not even the vocabulary has seen them
    examples = data.examples(8, Key((0,)))
    trained = {token for step in range(200) for token in examples.batch(step, 4)["tokens"].flatten().tolist()}
    assert sorted(decode([token]) for token in trained) == list("abcdefgh")
    evaluated = {token for rows in data.held_out_batches(8, 4) for token in rows.flatten().tolist()}
    assert {decode([token]) for token in evaluated} == {"V", "W"}
    assert len({data.digest, plain.digest, TextData.load({**values, "validation": 0.2}).digest}) == 3
    file.write_text(file.read_text()[:800] + "!" * 200)
    assert TextData.load(values).digest == data.digest  # whatever is held out
    assert str(examples.sources(0)[0]) == "text: 720 tokens, 0 epochs; 80 for validation"
    line = ["train", "xllama-tiny", "--dry-run", "--set", f"data.path={file}", "--set", "data.validation=0.1"]
    assert main([*line, "--set", "trainer.prompt=abc"]) == 0
    assert "; 90 for validation" in (text := capsys.readouterr().out) and "validation = 0.1" in text
    with pytest.raises(DataError, match="the validation part must have at least 2 tokens, got 1; give more text or a "):
        TextData.load({**values, "validation": 0.001})
