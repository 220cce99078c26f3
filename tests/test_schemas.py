"""Recognising rows: every documented error says where, what and how to go on; mapped fields; transcripts and trees."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from public_rows import CASES, Rows, said

from axon_core.config import validate
from axon_core.errors import ConfigError, DataError, UsageError
from axon_core.registry import optional
from axon_core.text import (
    Records,
    RowsConfig,
    read_comparisons,
    read_demonstrations,
    read_feedback,
    read_prompt_records,
)
from axon_core.text.schemas.known import SCHEMAS
from axon_core.text.schemas.transcripts import by_headings, by_instructions, by_speakers

READERS = {
    "demonstration": read_demonstrations,
    "preference": read_comparisons,
    "feedback": read_feedback,
    "prompt": read_prompt_records,
}
HH = "\n\nHuman: Hi\n\nAssistant: "


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


def read(file: Path, purpose: str, *rows: dict[str, Any], **how: Any) -> Records[Any]:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return READERS[purpose](file, validate(RowsConfig, how))


def test_every_schema_has_a_case():
    assert {schema.name for schema in SCHEMAS} - {"ranking"} == {case.schema for case in CASES}


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.name)
def test_a_schema_can_be_named(schema, file):
    for case in (case for case in CASES if case.schema == schema.name):
        for purpose in case.own:
            assert read(file, purpose, *case.rows, format=schema.name) == read(file, purpose, *case.rows)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.schema)
def test_fields_that_are_null_count_as_absent(case, file):
    purpose = next(iter(case.own))
    rows = [{**row, "tool_calls": None, "margin": None} for row in case.rows]
    assert read(file, purpose, *rows) == read(file, purpose, *case.rows)


SFT, PREF, RATED, ASK = READERS
ERRORS: list[tuple[str, str, Rows, dict[str, Any], str]] = [
    (
        "no schema: the fields, the nearest schema, and how to map it",
        SFT,
        [{"question": "2 + 2?", "answer": "4", "source": "me"}],
        {},
        r"line 1 of \S+ is not a valid completion: completion: this field is required; prompt: this field is required"
        r"\. It has the fields 'question', 'answer', 'source', and so is of no schema with demonstrations; the nearest "
        r"is completion \(completion, prompt\); name its fields, as in data\.fields = "
        r'\{ completion = "answer", prompt = "question" \}',
    ),
    (
        "no schema: preferences",
        PREF,
        [{"query": "2 + 2?", "preferred": "4", "worse": "5"}],
        {},
        r'comparison.*data\.fields = \{ chosen = "preferred", prompt = "query", rejected = "worse" \}',
    ),
    (
        "no schema: no field at all",
        ASK,
        [{}],
        {},
        "is not a valid prompt: prompt: this field is required.* no fields",
    ),
    (
        "plain text is of no schema",
        SFT,
        [{"text": "Once upon a time"}],
        {},
        "contents are of another schema",
    ),
    (
        "two schemas: both are named, and how to choose",
        SFT,
        [{"instruction": "Add.", "output": "3", "messages": said("Hi", "Ho")}],
        {},
        r"line 1 of \S+ is of more than one schema: messages \(messages\) and alpaca \(instruction, output\); choose "
        r"one, as in data\.format = 'messages'",
    ),
    (
        "mixed schemas: file, line, and both schemas",
        SFT,
        [{"instruction": "Add.", "output": "3"}, {"instruction": "Add.", "response": "3", "context": ""}],
        {},
        r"line 2 of \S+ is of the schema dolly \(instruction, response\), but line 1 of \S+ of alpaca",
    ),
    (
        "mixed texts",
        SFT,
        [{"text": "### Human: Hi### Assistant: Ho"}, {"text": "<s>[INST] Hi [/INST] Ho </s>"}],
        {},
        "line 2 of .* inst-text .* guanaco",
    ),
    (
        "another purpose",
        SFT,
        [{"prompt": "a", "completion": "b", "label": False}],
        {},
        r"schema feedback \(completion, label, prompt\), which holds no demonstrations; give rows of another schema \(",
    ),
    ("another purpose: preferences", PREF, [{"messages": said("Hi", "Ho")}], {}, "holds no preferences"),
    (
        "a mapped field that is missing",
        SFT,
        [{"question": "a", "answer": "b"}, {"question": "a"}],
        {"fields": {"prompt": "question", "completion": "answer"}},
        r"data\.fields takes completion from 'answer', but line 2 of \S+ has no such field; it has the field "
        "'question'",
    ),
    (
        "a named schema that the row is not of",
        SFT,
        [{"instruction": "a", "response": "b"}],
        {"format": "alpaca"},
        r"is not of the schema alpaca .* of data\.format: it lacks the field 'output'; it has",
    ),
    (
        "a named schema without what is needed",
        PREF,
        [{"instruction": "a", "output": "b"}],
        {"format": "alpaca"},
        "holds no preferences",
    ),
    (
        "empty answer",
        SFT,
        [{"instruction": "a", "output": ""}],
        {},
        r"1\.content: must have at least",
    ),
    (
        "number",
        SFT,
        [{"instruction": 1, "output": "b"}],
        {},
        r"content: must be a valid string",
    ),
    ("turns", SFT, [{"conversations": said("Hi", "Ho")[1:]}], {}, "message 1 must be the user's"),
    (
        "role",
        SFT,
        [{"messages": [{"role": "tool", "content": "x"}]}],
        {},
        r"messages\.0\.role: must be 'system', 'user' or 'assistant', got 'tool'",
    ),
    ("no list", SFT, [{"messages": "Hi"}], {}, "messages: must be a list of messages, got 'Hi'"),
    ("no message", SFT, [{"messages": ["Hi"]}], {}, r"messages\.0: must be a message, got 'Hi'"),
    (
        "no value",
        SFT,
        [{"conversations": [{"from": "human"}]}],
        {},
        "has no value",
    ),
    (
        "picture",
        SFT,
        [{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}],
        {},
        "valid string",
    ),
    (
        "open prompt",
        ASK,
        [{"prompt": said("Hi", "Ho")}],
        {},
        "the messages of a prompt must end with the user's, got the assistant's; remove the last one",
    ),
    (
        "two messages after the prompt",
        PREF,
        [{"chosen": HH + "a\n\nHuman: b\n\nAssistant: c", "rejected": HH + "d"}],
        {},
        "chosen: after the prompt there must be one message, the assistant's, got assistant, user, assistant",
    ),
    ("nothing shared", PREF, [{"chosen": "a b", "rejected": "c d"}], {}, "must begin with the same prompt"),
    (
        "no transcript shared",
        PREF,
        [{"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: b"}],
        {},
        "must begin with the same messages",
    ),
    (
        "text and messages",
        PREF,
        [{"chosen": "a", "rejected": said("a", "b")}],
        {},
        "must be a list of messages",
    ),
    (
        "another prompt than the messages'",
        PREF,
        [{"prompt": "x", "chosen": said("a", "b"), "rejected": said("a", "c")}],
        {},
        "prompt: must be the user's last message that chosen and rejected begin with",
    ),
    (
        "unfinished needs a text",
        PREF,
        [{"prompt": said("a"), "chosen": "b", "rejected": "c", "unfinished": ["chosen"]}],
        {},
        "unfinished needs a prompt that is a text",
    ),
    (
        "label",
        "feedback",
        [{"prompt": "a", "completion": "b", "label": 1}],
        {},
        "label: must be a valid boolean, got 1",
    ),
    ("text between turns", SFT, [{"text": "<s>[INST] a [/INST] b </s> c"}], {}, "follows the last turn"),
    (
        "amid turns",
        SFT,
        [{"text": "[INST] a [/INST] b </s> c [INST] d [/INST] e"}],
        {},
        "'c' stands between",
    ),
    (
        "orphan",
        SFT,
        [{"message_id": "a", "parent_id": "b", "text": "x", "role": "prompter"}],
        {},
        r"line 1 of \S+ is a reply to 'b', which is not in the file",
    ),
    (
        "circle",
        SFT,
        [
            {"message_id": "a", "text": "x", "role": "prompter"},
            {"message_id": "b", "parent_id": "c", "text": "x", "role": "assistant"},
            {"message_id": "c", "parent_id": "b", "text": "x", "role": "prompter"},
        ],
        {},
        r"line 2 of \S+ is a reply to a message that follows it",
    ),
    (
        "twice",
        SFT,
        [{"message_id": "a", "text": "x", "role": "prompter"}] * 2,
        {},
        r"line 2 of \S+ has the message_id of line 1 of \S+, 'a'; remove one",
    ),
    (
        "id",
        SFT,
        [{"message_id": 1, "text": "x", "role": "prompter"}],
        {},
        "message_id must be a text, got 1",
    ),
    (
        "tree",
        SFT,
        [{"message_tree_id": "a", "prompt": {"text": "x", "role": "prompter", "replies": ["y"]}}],
        {},
        "a message of a tree must have text and role, got 'y'",
    ),
    (
        "rank",
        SFT,
        [
            {
                "message_tree_id": "a",
                "prompt": {
                    **{"text": "x", "role": "prompter"},
                    "replies": [{"text": "y", "role": "assistant", "rank": "first"}],
                },
            }
        ],
        {},
        "rank: must be a number, got 'first'",
    ),
    (
        "nothing in the trees",
        PREF,
        [{"message_tree_id": "a", "prompt": {"text": "x", "role": "prompter", "replies": []}}],
        {},
        "has no preferences",
    ),
    ("nothing at all", ASK, [], {}, "has no records; write one row per line, such as"),
]


@pytest.mark.parametrize(("purpose", "rows", "how", "message"), [pytest.param(*row[1:], id=row[0]) for row in ERRORS])
def test_an_error_says_where_what_and_how_to_go_on(purpose, rows, how, message, file):
    with pytest.raises(DataError, match=message) as caught:
        read(file, purpose, *rows, **how)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"fields": {"question": "q"}}, "fields: must map names of .*, got 'question'"),
        ({"format": "alpacca"}, "format: must be one of alpaca, .*, got 'alpacca'"),
    ],
)
def test_wrong_options_are_refused(how, message):
    with pytest.raises(ConfigError, match=message):
        validate(RowsConfig, how)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"prompt": "a"}, {"prompt": }]', r"row 2 of \S+ is not JSON: Expecting value"),
        ('[{"prompt": "a"} {"prompt": "b"}]', r"row 2 of \S+ is not JSON: expected , or \] at character 17"),
        ('[{"prompt": "a"}', r"row 2 of \S+ is not JSON: expected , or \]"),
        ('[{"prompt": "a"}] x', r"row 2 of \S+ is not JSON: nothing may follow the array, got 'x'"),
        ('[{"prompt": "a"}, 3]', r"row 2 of \S+ must be a JSON object"),
        ('[{"prompt": "a", "prompt": "b"}]', r"row 1 of \S+ has the field 'prompt' twice"),
        ('[{"prompt": NaN}]', r"row 1 of \S+ is not JSON: NaN is not a number"),
        ("[" * 100_000, r"row 1 of \S+ is not JSON"),
        ("[]", "has no records"),
        ('[{"prompt": "caf\udce9"}]', "is not UTF-8 text"),
        (
            '[{"prompt": ""}]',
            r"row 1 of \S+ is not a valid prompt: prompt: must have at least 1.*correct the row",
        ),
    ],
)
def test_a_wrong_array_is_named_by_row(text, message, tmp_path):
    (tmp_path / "rows.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=message):
        read_prompt_records(tmp_path / "rows.json")


def test_tables_that_cannot_be_read(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"cannot read .*a\.parquet as parquet"):
        read_prompt_records(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"cannot read .*gone\.parquet"):
        read_prompt_records(tmp_path / "gone.parquet")

    def missing(module: str) -> None:
        raise ImportError(f"No module named {module!r}")

    monkeypatch.setattr(optional, "import_module", missing)
    with pytest.raises(UsageError, match=r"parquet cannot be used here .*axon-core\[parquet\]"):
        read_prompt_records(tmp_path / "a.parquet")


def test_one_line_says_what_is_ignored_and_none_where_nothing_is(file, caplog):
    rows = [{"prompt": "a", "completion": "b", "id": 1, "score": 2}, {"prompt": "c", "completion": "d", "lang": "en"}]
    with caplog.at_level(logging.WARNING, "axon"):
        read(file, "demonstration", *rows)
        (line,) = caplog.messages
        assert line == (
            f"{file}: the fields 'id', 'score', 'lang' ignored; the schema is completion (completion, prompt)"
        )
        read(file, "demonstration", {"prompt": "a", "completion": "b"})
    assert len(caplog.messages) == 1


def test_names_of_fields_cannot_control_a_terminal(file):
    rows = [{"\x1b[2J" + "x" * 200: 1, **{f"f{i}": 1 for i in range(20)}}]
    with pytest.raises(DataError) as caught:
        read(file, "prompt", *rows)
    message = str(caught.value)
    assert "\x1b" not in message and "and 9 more" in message and len(message) < 700


def test_prompts_with_and_without_answers_may_stand_in_one_file(file):
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "c"}, {"prompt": "d", "chosen": "e", "rejected": "f"}]
    assert [record.prompt for record in read(file, "prompt", *rows)] == ["a", "c", "d"]


def test_records_of_a_tree_are_called_by_the_lines_of_their_first_messages(file):
    case = next(case for case in CASES if case.schema == "oasst-messages")
    assert read(file, "demonstration", *case.rows).lines == [1, 8, 11]
    assert read(file, "preference", *case.rows).lines == [1, 1, 8, 11]


def test_deleted_messages_and_those_that_failed_their_review_are_left_out(file):
    replies = [
        {"text": "a", "role": "assistant", "rank": 0, "deleted": True},
        {"text": "b", "role": "assistant", "rank": 1, "review_result": False},
        {"text": "c", "role": "assistant", "rank": None},
        {"text": "d", "role": "assistant", "rank": 2},
    ]
    row = {"message_tree_id": "t", "prompt": {"text": "x", "role": "prompter", "replies": replies}}
    (dialogue,) = read(file, "demonstration", row)
    assert dialogue.texts() == ["x", "d"]
    with pytest.raises(DataError, match="no preferences"):
        read(file, "preference", row)


def test_transcripts_keep_what_is_within_a_message():
    text = "\n\nHuman: one\ntwo\n\nthree \n\nAssistant: Human: is no mark here\n\nHuman: \n\nAssistant: x"
    assert [one["content"] for one in by_speakers(text)] == ["one\ntwo\n\nthree", "Human: is no mark here", "", "x"]
    assert by_headings("### Human: a # b ## c### Assistant:d")[0]["content"] == "a # b ## c"
    assert by_instructions("[INST] a [/INST]") == said("a")
    assert by_instructions("<s>[INST] a [/INST] b</s>\n<s>[INST] c [/INST]d") == said("a", "b", "c", "d")
    assert by_instructions("<s>[INST] <<SYS>>\ns\n<</SYS>>\n\na [/INST] b </s>") == said("a", "b", system="s")
