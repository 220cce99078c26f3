"""Checkpoints with a tokenizer.json and a chat template: imported, talked to, exported, and as in transformers."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, GenerationConfig

from axon_core import CheckpointError, UsageError
from axon_core.cli import main
from axon_core.text import Message, PipelineTokenizer, Tokenizer, published_template, read_text
from axon_xllama.checkpoints import export_checkpoint, import_checkpoint

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKERS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
THINKING = ["<think>", "</think>", "<tool_call>", "ö"]


@pytest.fixture(scope="module")
def pipeline() -> tokenizers.Tokenizer:
    """A byte-level BPE of 397 tokens and three markers, of which the first begins a text."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=397, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(read_text()[:60_000].splitlines(keepends=True), trainer)
    made.add_special_tokens(MARKERS)
    made.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", pair="<|endoftext|> $A $B", special_tokens=[("<|endoftext|>", 397)]
    )
    return made


@pytest.fixture
def published(tmp_path, llama, pipeline):
    """The folder of such a checkpoint."""
    folder = tmp_path / "hf"
    llama().save_pretrained(folder)
    pipeline.save(str(folder / "tokenizer.json"))
    settings = {
        "bos_token": "<|endoftext|>",
        "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "special": True},
        "chat_template": CHATML,
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**settings, "tokenizer_class": "PreTrainedTokenizerFast"})
    )
    sampling = {"do_sample": True, "temperature": 0.6, "top_k": 7, "eos_token_id": [399, 397]}
    (folder / "generation_config.json").write_text(json.dumps(sampling))
    return folder


def test_its_tokenizer_markers_and_template_are_read(published, tmp_path, capsys):
    assert main(["import", str(published), "--out", str(tmp_path / "ours")]) == 0
    assert f"axon chat {tmp_path / 'ours'}" in capsys.readouterr().out
    ours = Tokenizer.load(tmp_path / "ours")
    assert isinstance(ours, PipelineTokenizer)
    assert (ours.bos, ours.eos, ours.ends, ours.add_bos) == (397, 399, {399, 397}, True)
    theirs = AutoTokenizer.from_pretrained(published)
    said = [{"role": "user", "content": "Hi, you!"}]
    template = published_template(ours)
    assert template is not None
    wanted = theirs.apply_chat_template(said, add_generation_prompt=True, return_dict=False)
    assert template(ours, [Message(**message) for message in said]) == wanted
    assert ours.encode_prompt("A text") == theirs("A text")["input_ids"]


def edit(file: Path, **changes) -> None:
    values = json.loads(file.read_text()) | changes if file.exists() else changes
    file.write_text(json.dumps({name: value for name, value in values.items() if value is not ...}))


def test_bos_is_what_the_post_processor_puts_first_where_no_setting_names_it(published, tmp_path):
    edit(published / "tokenizer_config.json", bos_token=...)
    import_checkpoint(published, tmp_path / "ours")
    ours = Tokenizer.load(tmp_path / "ours")
    theirs = AutoTokenizer.from_pretrained(published)
    assert (ours.bos, ours.add_bos) == (397, True)
    assert ours.encode_prompt("A text") == theirs("A text")["input_ids"]
    export_checkpoint(tmp_path / "ours", tmp_path / "again", format="hf")
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert again("A text")["input_ids"] == theirs("A text")["input_ids"]


@pytest.mark.parametrize(
    ("settings", "config", "found"),
    [
        ({"bos_token": ...}, {"bos_token_id": 398}, (398, False)),  # `<|im_start|>`
        ({"bos_token": ..., "add_bos_token": True}, {"bos_token_id": 398}, (398, True)),
        ({"bos_token": ...}, {"bos_token_id": 1}, (None, False)),  # the default of LlamaConfig, here a character
        ({"bos_token": ...}, {"bos_token_id": None}, (None, False)),
        ({"bos_token": None}, {"bos_token_id": 398}, (None, False)),  # as Qwen's, which have none
        ({"bos_token": "<|im_end|>"}, {"bos_token_id": 398}, (399, False)),
    ],
    ids=str,
)
def test_bos_is_otherwise_what_the_config_names(published, tmp_path, settings, config, found):
    edit(published / "tokenizer.json", post_processor=None)
    edit(published / "tokenizer_config.json", **settings)
    edit(published / "config.json", **config)
    import_checkpoint(published, tmp_path / "ours")
    ours = Tokenizer.load(tmp_path / "ours")
    assert (ours.bos, ours.add_bos) == found


def test_a_bos_that_is_asked_for_must_be_named(published, tmp_path):
    edit(published / "tokenizer.json", post_processor=None)
    edit(published / "tokenizer_config.json", bos_token=..., add_bos_token=True)
    edit(published / "config.json", bos_token_id=...)
    with pytest.raises(CheckpointError, match=r"add_bos_token is true in .*tokenizer_config.json, but there is no bos"):
        import_checkpoint(published, tmp_path / "ours")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"added_tokens": 5}, "tokenizer.json is not .*: added_tokens must be a list, got 5"),
        ({"post_processor": 5}, "the post_processor of .*tokenizer.json is malformed: 5"),
        ({"post_processor": {"type": "Sequence", "processors": 5}}, "the post_processor of .* is malformed: .*5"),
        ({"post_processor": {"type": "TemplateProcessing", "single": 5}}, "the post_processor of .* is malformed: .*5"),
        (
            {"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "a"}}]}},
            "the post_processor of .* is malformed",
        ),
        (
            {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
            "tokenizer.json is not .*: the tokenizers library refuses it: .*precompiled_charsmap",
        ),
    ],
    ids=str,
)
def test_a_malformed_tokenizer_json_is_an_error_by_name(published, tmp_path, changes, message):
    edit(published / "tokenizer.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        import_checkpoint(published, tmp_path / "ours")


@pytest.mark.parametrize("named", [[{"name": ["a"]}], [{"name": "default"}], [{"name": "default", "template": 5}], [5]])
def test_chat_templates_that_are_none(published, tmp_path, named):
    edit(published / "tokenizer_config.json", chat_template=named)
    import_checkpoint(published, tmp_path / "ours")
    assert published_template(Tokenizer.load(tmp_path / "ours")) is None


@pytest.mark.parametrize(
    ("values", "exported"),
    [
        ({"do_sample": True, "temperature": 0.6}, {"do_sample": True, "temperature": 0.6}),
        ({"do_sample": True, "top_k": 0}, {"do_sample": True, "top_k": 0}),
        ({"do_sample": True}, {"do_sample": True}),
        ({"temperature": 0.6}, {"do_sample": True, "temperature": 0.6}),  # as Axon samples from it
        ({"do_sample": False}, {"do_sample": False}),
        (
            {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1},
            {"do_sample": False, "repetition_penalty": 1.1},
        ),
        ({"do_sample": True, "temperature": 0.0}, {"do_sample": False}),  # which transformers refuses
        ({"repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
        ({}, {}),
    ],
    ids=str,
)
def test_sampling_is_exported_as_transformers_reads_it(published, tmp_path, values, exported):
    (published / "generation_config.json").write_text(json.dumps(values))
    import_checkpoint(published, tmp_path / "ours")
    export_checkpoint(tmp_path / "ours", tmp_path / "again", format="hf")
    found = json.loads((tmp_path / "again" / "generation_config.json").read_text())
    assert {name: value for name, value in found.items() if not name.endswith("_token_id")} == exported
    again = GenerationConfig.from_pretrained(tmp_path / "again")
    again.validate(strict=True)
    assert all(getattr(again, name) == value for name, value in exported.items())


def test_sampling_settings_that_break_a_rule_are_told_and_left_out(published, tmp_path):
    edit(published / "generation_config.json", temperature=-1, top_p="wide", do_sample=1)
    notices = []
    import_checkpoint(published, tmp_path / "ours", notice=notices.append)
    assert notices == [
        "do_sample of generation_config.json is left out: it must be true or false, got 1",
        "temperature of generation_config.json is left out: it must be greater than or equal to 0, got -1",
        "top_p of generation_config.json is left out: it must be a number, got 'wide'",
    ]
    assert json.loads((tmp_path / "ours" / "generation_config.json").read_text()) == {"top_k": 7}


def test_one_can_talk_to_it(published, tmp_path, capsys, monkeypatch):
    import_checkpoint(published, tmp_path / "ours")
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n<|im_end|>\n"))
    assert main(["chat", str(tmp_path / "ours"), "--max-new-tokens", "4"]) == 0
    assert "contains <|im_end|>, which is a marker of the tokenizer" in capsys.readouterr().err


@pytest.fixture
def thinking(pipeline):
    """The tokenizer of such a checkpoint with added tokens that are not special: Qwen3's, and a letter."""
    made = tokenizers.Tokenizer.from_str(pipeline.to_str())
    made.add_tokens([tokenizers.AddedToken(text, special=False, normalized=False) for text in THINKING])
    return PipelineTokenizer(made.to_str().encode(), bos=397, eos=399, chat_template=CHATML)


@pytest.mark.parametrize("role", ["system", "user"])
@pytest.mark.parametrize("marker", ["<think>", "<tool_call>", "<|im_end|>"])
def test_no_marker_is_in_what_users_and_system_say(thinking, marker, role):
    template = published_template(thinking)
    said = [Message(role=role, content=f"a {marker} b"), Message(role="user", content="c")]
    with pytest.raises(UsageError, match=rf"message 1 \({role}\) contains {re.escape(marker)}, which is a marker"):
        template(thinking, said)


def test_the_model_may_have_thought_aloud(thinking):
    template = published_template(thinking)
    assert template.markers == tuple(sorted(MARKERS))  # an answer ends at these alone
    assert template.model_markers == ("</think>", "<think>", "<tool_call>")
    question, again = Message(role="user", content="a < b?"), Message(role="user", content="Why?")
    answer = Message(role="assistant", content="<think>Hm.</think>Yes")
    tokens = template(thinking, [question, answer, again])
    assert [thinking.markers[text] for text in THINKING[:2]] == [i for i in tokens if i in (400, 401)]
    with pytest.raises(UsageError, match=r"message 2 \(assistant\) contains <\|im_end\|>"):
        template(thinking, [question, Message(role="assistant", content="a<|im_end|>"), again])


def test_a_letter_that_was_added_may_be_said(thinking):
    tokens = published_template(thinking)(thinking, [Message(role="user", content="schön < ö")])
    assert tokens.count(thinking.markers["ö"]) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (".replace('/no_think', '')", "<thi/no_thinknk>"),
        (".replace('/no_think', '')", "<|im_/no_thinkend|>"),
        (" | lower", "<THINK>"),
        ("[::-1]", ">kniht<"),
    ],
)
def test_no_message_becomes_a_marker_in_the_template(thinking, change, said):
    thinking.chat_template = CHATML.replace("message['content']", f"(message['content']{change})")
    template = published_template(thinking)
    with pytest.raises(UsageError, match=r"a message becomes <.*>, a marker of the tokenizer, in the chat template"):
        template(thinking, [Message(role="user", content=said)])
    assert template(thinking, [Message(role="user", content="1 < 2 /no_think")])


def test_a_message_that_the_normaliser_makes_a_marker_is_refused(pipeline):
    made = tokenizers.Tokenizer.from_str(pipeline.to_str())
    made.normalizer = normalizers.NFKC()
    made.add_tokens([tokenizers.AddedToken("<think>", special=False, normalized=True)])
    tokenizer = PipelineTokenizer(made.to_str().encode(), bos=397, eos=399, chat_template=CHATML)
    with pytest.raises(UsageError, match="a message becomes <think>"):
        published_template(tokenizer)(tokenizer, [Message(role="user", content="\uff1cthink\uff1e")])


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}", "cannot be used: Unexpected end of template"),
        ("{{ '%9d' % 1 }}", "cannot be used: it computes str % int, which is for numbers alone"),
        ("{{ raise_exception('no') }}", "refuses the messages: no"),
    ],
)
def test_a_checkpoint_whose_template_cannot_be_used_is_imported_for_texts(
    published, tmp_path, capsys, template, reason
):
    (published / "chat_template.jinja").write_text(template)
    assert main(["import", str(published), "--out", str(tmp_path / "ours")]) == 0
    printed = capsys.readouterr()
    assert f"Note: the chat template {reason}" in printed.err
    assert f"Next: axon generate {tmp_path / 'ours'}" in printed.out
    assert main(["chat", str(tmp_path / "ours")]) in (1, 2)
    assert f"the chat template {reason}" in capsys.readouterr().err


def test_exported_it_has_the_same_files_and_ids(published, pipeline, tmp_path):
    import_checkpoint(published, tmp_path / "ours")
    export_checkpoint(tmp_path / "ours", tmp_path / "again", format="hf")
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (published / "tokenizer.json").read_bytes()
    theirs, again = (AutoTokenizer.from_pretrained(folder) for folder in (published, tmp_path / "again"))
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    assert again.apply_chat_template(said, tokenize=False) == theirs.apply_chat_template(said, tokenize=False)
    assert again("A text")["input_ids"] == theirs("A text")["input_ids"]
    values = json.loads((tmp_path / "again" / "generation_config.json").read_text())
    assert (
        values["do_sample"] is True
        and values["temperature"] == 0.6
        and values["top_k"] == 7
        and sorted(values["eos_token_id"]) == [397, 399]
    )


def test_a_tokenizer_that_disagrees_with_the_weights_is_refused(published, pipeline, tmp_path):
    pipeline = tokenizers.Tokenizer.from_str(pipeline.to_str())
    pipeline.add_special_tokens([f"<|more {i}|>" for i in range(9)])
    pipeline.save(str(published / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="it has 400 and the tokenizer 409; give the right tokenizer"):
        import_checkpoint(published, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
