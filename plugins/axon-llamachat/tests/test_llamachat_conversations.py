"""Conversations as values: what asking, answering, changing and keeping make of them, whatever a browser sends."""

from __future__ import annotations

import asyncio
import time

import pytest

from axon_core import ByteTokenizer
from axon_eet import Answer, AnswerPiece, Question
from axon_llamachat.page.completion import TokenSpans
from axon_llamachat.page.conversations import SavedTalks, Talk
from axon_llamachat.page.pieces import paced


def said(talk: Talk) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in talk.turns]


def answered(*texts: str) -> Talk:
    talk = Talk()
    for text in texts:
        talk = talk.ask(text).answer(f"re {text}").settle()
    return talk


def test_a_conversation_is_asked_answered_retried_and_changed():
    talk = Talk().ask("a")
    assert talk.busy and talk.ask("b") == talk  # one question at a time
    talk = talk.answer("x").answer("xy")
    assert said(talk) == [("user", "a"), ("assistant", "xy")] and talk.busy
    talk = talk.settle()
    assert not talk.busy and talk.ask("  \n") == talk
    assert said(talk.retry()) == [("user", "a")] and talk.retry().busy
    two = answered("a", "b")
    assert said(two.edit(2, "c")) == [("user", "a"), ("assistant", "re a"), ("user", "c")]
    assert said(two.edit(0, "c")) == [("user", "c")]
    for index, text in ((1, "c"), (4, "c"), (-2, "c"), (0, " ")):
        assert two.edit(index, text) == two
    unanswered = two.ask("c").answer("").settle()
    assert said(unanswered)[-1] == ("user", "c")
    assert said(unanswered.ask("d")) == [*said(two), ("user", "d")]
    assert not Talk().retry().busy


def test_the_latest_hundred_are_kept_in_their_places():
    saved, talks = SavedTalks(), [answered(str(i)) for i in range(103)]
    for talk in talks:
        saved = saved.put(talk)
    assert [each.key for each in saved.conversations] == [talk.key for talk in talks[:2:-1]]
    changed = talks[50].ask("more")
    saved = saved.put(changed)
    assert saved.conversations[52] == changed.settle() and len(saved.conversations) == 100
    assert saved.put(Talk()) == saved and saved.find("other") is None
    assert saved.without(changed.key).find(changed.key) is None
    assert saved.listing(changed.key)["open"] == changed.key


@pytest.mark.parametrize(
    "value",
    [
        *(None, 1, "a", [], {"turns": 1}, {"turns": [{"role": "system", "content": "a"}]}, {"key": 1}),
        {"turns": [{"role": "user", "content": {"path": "/etc/passwd"}}]},
        {"conversations": [{"turns": [{"role": "user"}]}]},
    ],
)
def test_what_is_not_valid_is_an_empty_one(value):
    assert Talk.of(value).turns == () and SavedTalks.of(value).conversations == ()


def test_a_title_is_short_and_on_one_line():
    assert answered("a \n\t b").title == "a b"
    assert len(answered("a" * 100).title) == 40 and Talk().title == ""


def test_what_a_browser_keeps_comes_back():
    saved = SavedTalks().put(answered("a", "<b>"))
    assert SavedTalks.of(saved.json_value()) == saved


def piece(text: str, token: int = 97, logprob: float = -1.0, finish: str | None = None) -> AnswerPiece:
    return AnswerPiece(0, text, token, logprob, ((97, -0.5), (98, -1.5)), finish)


def test_pieces_arrive_together_and_nothing_arrives_in_time():
    async def read() -> list[str]:
        answer = Answer(Question(prompt="a"), 1, lambda: None)
        found = []
        loop = asyncio.get_running_loop()
        loop.call_later(0.01, answer.put, piece("a"))
        loop.call_later(0.02, answer.put, piece("b"))
        loop.call_later(1.4, answer.put, piece("c", finish="length"))
        async for pieces in paced(answer, 0.1):
            found.append("".join(each.text for each in pieces))
        return found

    begin = time.monotonic()
    assert asyncio.run(read()) == ["ab", "", "c"]
    assert time.monotonic() - begin < 5


def test_an_answer_is_cancelled_when_nobody_reads_on():
    async def leave() -> bool:
        answer = Answer(Question(prompt="a"), 1, lambda: None)
        answer.put(piece("a"))
        pieces = paced(answer, 0.01)
        assert [each.text for each in await anext(pieces)] == ["a"]
        await pieces.aclose()
        return answer.cancelled

    assert asyncio.run(leave())


def test_a_part_of_a_character_is_told_with_the_next_token():
    spans = TokenSpans(ByteTokenizer(), "p")
    spans.add([piece("a"), piece("", 0xE2), piece("", 0x82), piece("€", 0xAC), piece("b", 98)])
    value = spans.json_value()
    assert [(each["text"], len(each["scores"])) for each in value["spans"]] == [("a", 1), ("€", 3), ("b", 1)]
    assert value["spans"][0]["scores"][0] == {
        "own": ["a", "36.8 %"],
        "p": pytest.approx(0.3679, abs=1e-4),
        "top": [["a", "60.7 %"], ["b", "22.3 %"]],
    }
    assert value["spans"][1]["scores"][0]["own"][0] == "bytes:\\xe2" and value["prompt"] == "p"
