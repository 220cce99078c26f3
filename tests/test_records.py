"""Records: what each kind accepts, and every way a line can be wrong, with the line named."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from axon_core.config import validate
from axon_core.errors import ConfigError, DataError
from axon_core.text.records import (
    Comparison,
    CompletionRecord,
    Dialogue,
    Message,
    PromptRecord,
    Ranking,
    line_names,
    read_prompts,
    read_records,
    split_records,
)

GOOD = {
    CompletionRecord: '{"prompt": "p", "completion": "c"}',
    Comparison: '{"prompt": "p", "chosen": "c", "rejected": "r", "margin": 1}',
    Ranking: '{"prompt": "p", "responses": ["a", "b", "c"], "ranking": [1, 2, 0]}',
    Dialogue: '{"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}',
}


def turns(*roles: str) -> str:
    return json.dumps({"messages": [{"role": role, "content": "x"} for role in roles]})


def comparison(**fields: object) -> str:
    return json.dumps({"prompt": "p", "chosen": "c", "rejected": "r", **fields})


BAD = [
    (CompletionRecord, '{"prompt": "p"}', r"completion: this field is required"),
    (CompletionRecord, '{"prompt": "", "completion": "c"}', r"prompt: must have at least 1 character.*''"),
    (CompletionRecord, '{"prompt": 3, "completion": "c"}', r"prompt: must be a valid string, got 3"),
    (
        CompletionRecord,
        '{"prompt": "p", "completion": "c", "competion": "d"}',
        r"unknown field 'competion' \(did you mean",
    ),
    (
        CompletionRecord,
        '{"prompt": "p", "completion": "c", "prompt": "q"}',
        r"has the field 'prompt' twice; remove one",
    ),
    (CompletionRecord, '{"prompt": "p", "completion": "\\ud800"}', r"completion: must be a valid string"),
    (CompletionRecord, '["p", "c"]', r"must be a JSON object .*got \['p', 'c'\]"),
    (CompletionRecord, '{"prompt": "p", "completion": "c"', r"is not JSON: .*; write one object per line"),
    (CompletionRecord, "[" * 100_000, r"is not JSON"),
    (Comparison, comparison(chosen="r"), r"chosen and rejected must differ, but both are 'r'"),
    (Comparison, comparison(margin=-1), r"margin: must be greater than or equal to 0, got -1"),
    (Comparison, comparison(margin="1"), r"margin: must be a valid number, got '1'"),
    (Comparison, comparison(margin=True), r"margin: must be a valid number, got True"),
    (Comparison, comparison(margin=float("nan")), r"NaN is not a number"),
    (Comparison, comparison(margin=float("inf")), r"Infinity is not a number"),
    (Ranking, '{"prompt": "p", "responses": ["a", "b"], "ranking": [0, 0]}', r"each of 0 … 1 once.*got \[0, 0\]"),
    (Ranking, '{"prompt": "p", "responses": ["a", "b"], "ranking": [1]}', r"each of 0 … 1 once.*got \[1\]"),
    (Ranking, '{"prompt": "p", "responses": ["a", "b"], "ranking": [1, 2]}', r"each of 0 … 1 once"),
    (Ranking, '{"prompt": "p", "responses": ["a", "b"], "ranking": ["1", 0]}', r"ranking\.0: must be a valid integer"),
    (Ranking, '{"prompt": "p", "responses": ["a", "a"], "ranking": [1, 0]}', r"responses must differ, but two are 'a'"),
    (Ranking, '{"prompt": "p", "responses": ["a", ""], "ranking": [1, 0]}', r"responses\.1: must have"),
    (Ranking, '{"prompt": "p", "responses": ["a"], "ranking": [0]}', r"responses: .*at least 2"),
    (Dialogue, '{"messages": []}', r"messages: .*at least 1"),
    (Dialogue, turns("assistant", "user"), r"message 1 must be the user's, .*got 'assistant'"),
    (Dialogue, turns("user", "user"), r"message 2 must be the assistant's, .*got 'user'"),
    (Dialogue, turns("user", "system"), r"message 2 must be the assistant's, .*got 'system'"),
    (Dialogue, turns("system", "assistant"), r"message 2 must be the user's, .*got 'assistant'"),
    (Dialogue, turns("system"), r"a user's message must follow the system's, got none"),
    (Dialogue, turns("tool"), r"messages\.0\.role: must be 'system', 'user' or 'assistant', got 'tool'"),
]


@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.gz"])
@pytest.mark.parametrize("kind", GOOD, ids=lambda kind: kind.__name__)
def test_records_come_in_the_order_of_their_lines(kind, name, tmp_path, monkeypatch):
    monkeypatch.setenv("PLACE", str(tmp_path))
    lines = [GOOD[kind].replace(": [", f":{' ' * i}[") for i in range(3)]
    text = "\n".join(lines).encode("utf-8-sig")  # a byte order mark, and no newline at the end
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    assert read_records(f"$PLACE/{name}", kind) == [kind.model_validate_json(line) for line in lines]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1, max_size=5))
def test_every_text_survives_the_file(tmp_path_factory, texts):
    texts = [pair for pair in texts if pair[0] != pair[1]] or [("a", "b")]
    file = tmp_path_factory.mktemp("records") / "r.jsonl"
    records = [Comparison(prompt="\n", chosen=a, rejected=b) for a, b in texts]
    file.write_text("".join(r.model_dump_json() + "\n" for r in records), encoding="utf-8")
    assert read_records(file, Comparison) == records


def test_a_comparison_without_margin_has_margin_0():
    assert Comparison(prompt="p", chosen="c", rejected="r").margin == 0


def test_a_ranking_gives_every_pair_the_better_one_first():
    ranking = Ranking(prompt="p", responses=("a", "b", "c", "d"), ranking=(2, 0, 3, 1))
    assert ranking.pairs() == [(2, 0), (2, 3), (2, 1), (0, 3), (0, 1), (3, 1)]


def test_what_was_cut_off_is_said_by_number_or_name():
    ranking = {"prompt": "p", "responses": ["a", "b"], "ranking": [1, 0]}
    assert validate(Ranking, ranking).unfinished == ()
    assert validate(Ranking, {**ranking, "unfinished": [1]}).unfinished == (1,)
    with pytest.raises(ConfigError, match="unfinished must list numbers of responses, 0 … 1, got 2"):
        validate(Ranking, {**ranking, "unfinished": [0, 2]})
    comparison = {"prompt": "p", "chosen": "a", "rejected": "b"}
    assert validate(Comparison, {**comparison, "unfinished": ["rejected"]}).unfinished == ("rejected",)
    with pytest.raises(ConfigError, match="unfinished"):
        validate(Comparison, {**comparison, "unfinished": ["other"]})


def test_dialogues_may_begin_with_the_system_and_end_with_the_user():
    roles = ("system", "user", "assistant", "user")
    assert len(Dialogue(messages=tuple(Message(role=role, content="x") for role in roles)).messages) == 4


@pytest.mark.parametrize(("kind", "line", "rule"), BAD)
def test_a_bad_line_is_named(kind, line, rule, tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text(f"{GOOD[kind]}\n{line}\n{GOOD[kind]}\n", encoding="utf-8")
    with pytest.raises(DataError, match=rule) as error:
        read_records(file, kind)
    assert str(error.value).startswith(f"line 2 of {file} ")
    assert "; " in str(error.value) or "must be a JSON object such as" in str(error.value)  # the remedy


def test_bytes_that_are_no_utf8_are_named(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_bytes(GOOD[CompletionRecord].encode() + b'\n{"prompt": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"line 2 of .* is not UTF-8 text: byte 16 is 0xe9 .*iconv"):
        read_records(file, CompletionRecord)


def test_files_that_cannot_be_read(tmp_path: Path):
    packed = gzip.compress((GOOD[CompletionRecord] + "\n").encode() * 2000)
    files = {"plain.gz": b"no gzip", "short.gz": packed[: len(packed) // 2], "empty.jsonl": b""}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    expected = {
        "plain.gz": r"cannot read .*plain\.gz after line 0: Not a gzipped file",
        "short.gz": r"cannot read .*short\.gz after line \d+: ",
        "empty.jsonl": r"empty\.jsonl has no records; write one per line: 'prompt', 'completion'",
        "gone.jsonl": r"cannot read .*gone\.jsonl after line 0: No such file",
        ".": r"cannot read .*: it is a folder; give a file of JSON lines",
        "$AXON_NO_SUCH_VARIABLE/x.jsonl": r"names an environment variable that is not set",
    }
    for name, message in expected.items():
        with pytest.raises(DataError, match=message):
            read_records(name if name.startswith("$") else tmp_path / name, CompletionRecord)


def test_prompts_are_named_and_what_stands_beside_them_is_passed_over(tmp_path: Path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n')
    assert read_prompts(file) == [(f"line 1 of {file}", "a"), (f"line 2 of {file}", "a")]
    for line, message in (
        ('{"prompt": ""}', "line 2 of .* is not a valid prompt: prompt: must have at least 1 character"),
        ('{"completion": "b"}', "line 2 of .* is not a valid prompt: prompt: this field is required"),
        ('{"prompt": 3}', "line 2 of .* is not a valid prompt: prompt: must be a valid string, got 3"),
    ):
        file.write_text('{"prompt": "a"}\n' + line)
        with pytest.raises(DataError, match=message):
            read_prompts(file)


def test_reading_records_needs_no_torch():
    code = "import sys, axon_core.text.records; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_fields_of_other_names_are_to_be_renamed_and_not_their_lines_removed(tmp_path: Path):
    file = tmp_path / "questions.jsonl"
    file.write_text('{"question": "2 + 2?", "answer": "4", "source": "me"}\n')
    with pytest.raises(DataError) as caught:
        read_records(file, CompletionRecord)
    message = str(caught.value)
    assert "unknown fields 'question', 'answer', 'source' (known: prompt, completion)" in message
    assert message.endswith("; use these field names in every line")
    file.write_text('{"prompt": "2 + 2?", "completion": ""}\n')
    with pytest.raises(DataError, match="; correct the line, or remove it"):
        read_records(file, CompletionRecord)


def test_blank_lines_are_passed_over_and_other_lines_keep_their_numbers(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_bytes(b'\xef\xbb\xbf\r\n{"prompt": "a"}\n\n   \t\n{"prompt": "b"}\n\n')
    records = read_records(file, PromptRecord)
    assert records == [PromptRecord(prompt="a"), PromptRecord(prompt="b")] and records.lines == [2, 5]
    assert read_prompts(file) == [(f"line 2 of {file}", "a"), (f"line 5 of {file}", "b")]
    assert line_names(records, "x") == ["line 2 of x", "line 5 of x"]
    assert line_names([*records], "x") == ["line 1 of x", "line 2 of x"]
    file.write_bytes(b'\n\n{"prompt": 3}\n')
    with pytest.raises(DataError, match="line 3 of"):
        read_records(file, PromptRecord)
    file.write_bytes(b"\n \n")
    with pytest.raises(DataError, match="has no records"):
        read_records(file, PromptRecord)


def test_a_validation_part_is_cut_from_what_is_trained_on():
    assert split_records(range(20), 0.2, "numbers", 0.25) == ((*range(12),), (*range(12, 16),))
    assert split_records(range(20), 0.2, "numbers")[1] == (*range(16, 20),)
    with pytest.raises(DataError, match="there must be at least 2 numbers"):
        split_records(range(2), 0.2, "numbers", 0.25)
