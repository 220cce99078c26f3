"""The claims hold, and fail where dialogues are written or checked in another way."""

import pytest

from axon_core import CHAT_TEMPLATES
from axon_core.papers import check_claim, find_card
from axon_xllama import template

PAPER = find_card("llamachat").paper
CLAIMS = {claim.id: claim for claim in PAPER.claim}


@pytest.mark.parametrize("name", CLAIMS)
def test_holds(name):
    result = check_claim(PAPER, CLAIMS[name])
    assert result.verdict == "reproduced", result.measured


def without_system(written):
    """The template, made to forget the system message after the first turn."""
    return lambda self, tokenizer, messages: written(
        self, tokenizer, messages if len(messages) < 3 else [m for m in messages if m.role != "system"]
    )


def shortened(written):
    """The template, made to leave out the earliest turns of a long conversation."""
    return lambda self, tokenizer, messages: written(
        self, tokenizer, [messages[0], *messages[-5:]] if len(messages) > 20 else messages
    )


@pytest.mark.parametrize("change", [without_system, shortened])
def test_system_message_fails_if_it_or_a_turn_is_left_out(change, monkeypatch):
    monkeypatch.setattr(template.Llama2, "__call__", change(template.Llama2.__call__))
    assert check_claim(PAPER, CLAIMS["system-message"]).verdict == "failed"


def test_dialogue_format_fails_without_the_ends_of_turns(monkeypatch):
    written = template.Llama2.__call__
    change = lambda self, tokenizer, messages: [t for t in written(self, tokenizer, messages) if t != tokenizer.eos]  # noqa: E731
    monkeypatch.setattr(template.Llama2, "__call__", change)
    assert check_claim(PAPER, CLAIMS["dialogue-format"]).verdict == "failed"


def test_special_tags_fail_if_one_is_allowed(monkeypatch):
    monkeypatch.setattr("axon_xllama.chat.MARKERS", ("[INST]", "[/INST]", "<<SYS>>"))
    assert check_claim(PAPER, CLAIMS["special-tags"]).verdict == "failed"


def test_without_the_template_nothing_is_run(monkeypatch):
    monkeypatch.setenv("AXON_DISABLE_PLUGINS", "axon-xllama")
    from axon_core.registry.registry import refresh

    refresh()
    try:
        assert "llama2" not in CHAT_TEMPLATES
        assert {check_claim(PAPER, claim).verdict for claim in PAPER.claim} == {"not run"}
    finally:
        monkeypatch.undo()
        refresh()
