"""Stop strings: the text ends before the first complete one, however it arrives, and no part of one is given out."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from axon_core.generation.stop_strings import StopStrings, cut

FEW = st.text("ab", max_size=20)  # two letters: overlaps and repetitions are the rule
STOPS = st.lists(st.text("ab", min_size=1, max_size=5), max_size=3)


def naive(text: str, stop: list[str]) -> str:
    """Grow the text by a character until it ends with a stop string."""
    for n in range(len(text) + 1):
        ending = [end for end in stop if text[:n].endswith(end)]
        if ending:
            return text[: n - max(map(len, ending))]
    return text


def streamed(pieces: list[str], stop: list[str]) -> tuple[list[str], bool]:
    stream = StopStrings(stop)
    given = [stream.push(piece) for piece in pieces]
    return [*given, stream.finish()], stream.stopped


@given(st.lists(st.text("ab", max_size=4), max_size=10), STOPS)
@example(["ab", "c"], ["abcd", "c"])
@example(["a", "a", "b"], ["aab"])
def test_a_stream_is_the_cut_of_the_whole_text_however_it_is_divided(pieces, stop):
    text = "".join(pieces)
    given_out, stopped = streamed(pieces, stop)
    assert "".join(given_out) == naive(text, stop)
    assert stopped == any(end in text for end in stop)
    assert cut(text, stop) == (naive(text, stop) if stopped else None)


@given(FEW, STOPS)
def test_no_more_is_held_back_than_must_be(text, stop):
    stream = StopStrings(stop)
    out = ""
    for n, character in enumerate(text, 1):
        out += stream.push(character)
        if stream.stopped:
            return
        held = text[len(out) : n]
        assert out + held == text[:n]
        assert held == "" or any(len(end) > len(held) and end.startswith(held) for end in stop)


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one\n\ntwo", ["\n\n"], "one"),
        ("abcd", ["abcd", "c"], "ab"),  # "c" is complete first
        ("xab", ["b", "ab"], "x"),  # both end at once: the one that begins earlier counts
        ("none", ["#"], None),
        ("none", [], None),
    ],
)
def test_where_the_text_is_cut(text, stop, expected):
    assert cut(text, stop) == expected
