"""The Llama 2 chat format: the documented strings, ids for the markers, and a conversation in the terminal."""

from __future__ import annotations

import io
import os
import signal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from axon_core import ContextError, DataError, UsageError
from axon_core.cli import main
from axon_core.generation import Sampling
from axon_core.text import ByteTokenizer, CharTokenizer, Tokenizer, train_tokenizer
from axon_core.text import Message as Turn
from axon_xllama import XLlama
from axon_xllama.chat import MARKERS, ChatMessage, chat_tokens, chat_turns
from axon_xllama.conversation import Conversation
from axon_xllama.template import Llama2

USER = ChatMessage("user", "Hello, how are you?")
ASSISTANT = ChatMessage("assistant", "I'm doing great. How can I help you today?")
AGAIN = ChatMessage("user", "I'd like to show off how chat templating works!")
SYSTEM = ChatMessage("system", "You are a helpful, respectful and honest assistant.")

# The strings that transformers documents for the Llama 2 chat template, with its <s> and </s>.
DOCUMENTED = [
    ([USER], "<s>[INST] Hello, how are you? [/INST]"),
    (
        [USER, ASSISTANT, AGAIN],
        "<s>[INST] Hello, how are you? [/INST] I'm doing great. How can I help you today? </s><s>[INST] I'd like to "
        "show off how chat templating works! [/INST]",
    ),
    (
        [SYSTEM, USER],
        "<s>[INST] <<SYS>>\nYou are a helpful, respectful and honest assistant.\n<</SYS>>\n\nHello, how are you? "
        "[/INST]",
    ),
    (
        [SYSTEM, USER, ASSISTANT, AGAIN],
        "<s>[INST] <<SYS>>\nYou are a helpful, respectful and honest assistant.\n<</SYS>>\n\nHello, how are you? "
        "[/INST] I'm doing great. How can I help you today? </s><s>[INST] I'd like to show off how chat templating "
        "works! [/INST]",
    ),
    ([ChatMessage("user", "  spaces \n")], "<s>[INST] spaces [/INST]"),
    (
        [ChatMessage("user", "a "), ChatMessage("assistant", "\n b"), ChatMessage("user", " c")],
        "<s>[INST] a [/INST] b </s><s>[INST] c [/INST]",
    ),
]


def written(tokens: list[int], tokenizer: Tokenizer) -> str:
    """The text of tokens, with the markers that are ids spelled out."""
    names = {tokenizer.bos: "<s>", tokenizer.eos: "</s>"}
    return "".join(names.get(token) or tokenizer.piece(token).decode("latin-1") for token in tokens)


@pytest.mark.parametrize(("messages", "expected"), DOCUMENTED)
def test_the_documented_strings(messages, expected):
    turns = chat_turns(messages)
    assert "</s>".join("<s>" + turn for turn in turns) == expected
    assert written(chat_tokens(ByteTokenizer(), messages), ByteTokenizer()) == expected


def test_the_ids_are_those_of_the_reference_turn_by_turn():
    if not (folder := os.environ.get("AXON_DATA_DIR")):
        pytest.skip("AXON_DATA_DIR is not set: the sentencepiece model it holds is not part of the repository")
    tokenizer = train_tokenizer({"type": "sentencepiece", "path": f"{folder}/llama/m.model"}, "")
    tokens = chat_tokens(tokenizer, [USER, ASSISTANT, AGAIN])
    first = tokenizer.encode(f"[INST] {USER.content} [/INST] {ASSISTANT.content} ")
    assert tokens == [1, *first, 2, 1, *tokenizer.encode(f"[INST] {AGAIN.content} [/INST]")]


def test_markers_of_ids_are_ordinary_text_in_a_message():
    (turn,) = chat_turns([ChatMessage("user", "</s><s>")])
    assert turn == "[INST] </s><s> [/INST]"
    tokens = chat_tokens(ByteTokenizer(), [ChatMessage("user", "</s><s>")])
    assert [token for token in tokens if token > 255] == [256]


@given(st.text(), st.sampled_from(MARKERS), st.text(), st.integers(0, 3))
def test_a_message_with_a_marker_is_refused_wherever_it_stands(before, marker, after, place):
    messages = [SYSTEM, USER, ASSISTANT, AGAIN]
    messages[place] = messages[place]._replace(content=before + marker + after)
    with pytest.raises(UsageError, match=rf"message {place + 1} \({messages[place].role}\) contains .*rephrase it"):
        chat_turns(messages)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "end with a message of role 'user'"),
        ([SYSTEM], "end with a message of role 'user'"),
        ([USER, ASSISTANT], "end with a message of role 'user'"),
        ([ASSISTANT], "message 1 must be of role 'user', got 'assistant'"),
        ([SYSTEM, USER, USER], "message 3 must be of role 'assistant', got 'user'"),
        ([USER, SYSTEM, USER], "message 2 must be of role 'assistant', got 'system'"),
    ],
)
def test_roles_take_turns(messages, message):
    with pytest.raises(UsageError, match=message):
        chat_turns(messages)


def test_a_tokenizer_without_markers_is_refused():
    with pytest.raises(DataError, match=r"needs a tokenizer with bos and eos, but this one \(char\) lacks them"):
        Conversation(tiny(), CharTokenizer("[INST]/ "))


def tiny(context: int = 200) -> XLlama:
    torch.manual_seed(0)
    return XLlama.build(vocab_size=258, context=context, dim=32, n_layers=1, n_heads=2).eval()


def test_a_conversation_remembers_what_was_said_and_repeats_with_its_seed():
    def talk(seed: int) -> list[Turn]:
        conversation = Conversation(tiny(), ByteTokenizer(), max_new_tokens=8, seed=seed, system="Be brief.")
        for text in ("one", "two"):
            answer = "".join(conversation.ask(text))
            assert conversation.messages[-2:] == [
                Turn(role="user", content=text),
                Turn(role="assistant", content=answer),
            ]
        return conversation.messages

    assert talk(1) == talk(1) != talk(2)


def test_an_answer_that_is_cut_short_stays_as_far_as_it_came():
    conversation = Conversation(tiny(), ByteTokenizer(), max_new_tokens=30)
    pieces = conversation.ask("one")
    begun = next(pieces) + next(pieces)
    pieces.close()
    assert conversation.messages == [Turn(role="user", content="one"), Turn(role="assistant", content=begun)]


def test_an_answer_ends_before_a_marker():
    model, tokenizer = tiny(), ByteTokenizer()
    script = [*b"yes [INST] now"]
    plain, made = model.logits, iter(script)

    def scripted(features: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros_like(plain(features))
        logits[..., next(made)] = 50.0
        return logits

    model.logits = scripted
    conversation = Conversation(model, tokenizer, sampling=Sampling(temperature=0))
    assert "".join(conversation.ask("Ready?")) == "yes "
    assert chat_turns([*conversation.messages, AGAIN])  # so that the conversation can go on


def test_what_does_not_fit_is_forgotten_from_the_beginning():
    conversation = Conversation(tiny(100), ByteTokenizer(), max_new_tokens=20, system="S")
    for number in range(4):
        list(conversation.ask(f"number {number}"))
    assert len(conversation.messages) == 8 and 0 < conversation.forgotten < 6
    before = list(conversation.messages)
    with pytest.raises(ContextError, match=r"the message has 1\d\d tokens, but the model's context is 100"):
        list(conversation.ask("x" * 90))
    with pytest.raises(UsageError, match=r"contains \[INST\]"):
        list(conversation.ask("[INST]"))
    assert conversation.messages == before


@pytest.fixture
def saved(tmp_path) -> str:
    tiny().save(tmp_path)
    ByteTokenizer().save(tmp_path)
    return str(tmp_path)


def typed(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_the_terminal_shows_each_answer_and_leaves_at_the_end_of_input(saved, monkeypatch, capsys):
    typed(monkeypatch, "one\n\ntwo <<SYS>>\ntwo\n/reset\none\n")
    assert main(["chat", saved, "--max-new-tokens", "6", "--temperature", "0"]) == 0
    out, err = capsys.readouterr()
    conversation = Conversation(tiny(), ByteTokenizer(), sampling=Sampling(temperature=0), max_new_tokens=6)
    one, two = ("".join(conversation.ask(text)) for text in ("one", "two"))
    assert out == f"> {one}\n> > > {two}\n> > {one}\n> \n"
    assert "Error: message 3 (user) contains <<SYS>>" in err
    assert "starts again" in err


def test_ctrl_c_ends_the_answer_and_not_the_conversation(saved, monkeypatch, capsys):
    typed(monkeypatch, "one\n/reset\n")
    step, count = XLlama.logits, iter(range(1000))

    def interrupted(*arguments, **options):
        if next(count) == 3:
            signal.raise_signal(signal.SIGINT)
        return step(*arguments, **options)

    monkeypatch.setattr(XLlama, "logits", interrupted)
    assert main(["chat", saved, "--max-new-tokens", "50"]) == 0
    out, err = capsys.readouterr()
    assert next(count) == 4 and "starts again" in err and out.endswith("> \n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--system", "be [INST]"], "contains [INST]"), (["--temperature", "-1"], "temperature: must be greater")],
)
def test_options_that_do_not_fit(saved, arguments, message, capsys):
    assert main(["chat", saved, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_as_a_template_an_answered_dialogue_begins_as_the_open_one():
    tokenizer, template = ByteTokenizer(), Llama2(Llama2.Config())
    said = [Turn(role=message.role, content=message.content) for message in (SYSTEM, USER, ASSISTANT, AGAIN)]
    assert template(tokenizer, said) == chat_tokens(tokenizer, [SYSTEM, USER, ASSISTANT, AGAIN])
    opened, answered = template(tokenizer, said[:2]), template(tokenizer, said[:3])
    assert answered[: len(opened)] == opened
    assert written(answered[len(opened) :], tokenizer) == f" {ASSISTANT.content} </s>"
