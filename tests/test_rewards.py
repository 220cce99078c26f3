"""Scores of responses: in their order, in parts, and refused by the name of the prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from axon_core.alignment import rewards
from axon_core.alignment.rewards import score_responses
from axon_core.errors import DataError, TrainingError

PROMPTS = [("line 1", "p"), ("line 2", "qq")]


def lengths(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    return [10 * len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]


def test_each_response_is_scored_after_its_own_prompt(monkeypatch: pytest.MonkeyPatch):
    responses = [["a", "bb", "ccc"], ["", "d", "ee"]]
    expected = torch.tensor([[11.0, 12.0, 13.0], [20.0, 21.0, 22.0]], dtype=torch.float64)
    assert torch.equal(score_responses(lengths, PROMPTS, responses), expected)
    monkeypatch.setattr(rewards, "_ROWS", 4)
    sizes = list[int]()

    def counted(prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        sizes.append(len(texts))
        return lengths(prompts, texts)

    assert torch.equal(score_responses(counted, PROMPTS, responses), expected)
    assert sizes == [4, 2]


def test_who_judges_ends_is_told_which_there_are(monkeypatch: pytest.MonkeyPatch):
    class Ends:
        judges_ends = True

        def __call__(self, prompts: Sequence[str], texts: Sequence[str], finished: Sequence[bool]) -> list[float]:
            return [float(end) for end in finished]

    monkeypatch.setattr(rewards, "_ROWS", 3)
    ends = [[True, False], [False, True]]
    assert score_responses(Ends(), PROMPTS, [["a", "b"], ["c", "d"]], ends).tolist() == [[1, 0], [0, 1]]
    assert score_responses(Ends(), PROMPTS, [["a"], ["c"]]).tolist() == [[1], [1]]
    assert score_responses(lengths, PROMPTS, [["a", "b"], ["c", "d"]], ends).tolist() == [[11, 11], [21, 21]]


def raises(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    return [1 / (len(prompt) - 2) for prompt in prompts]


def only_together(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    return [1 / (2 - len(prompts))] * len(prompts)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda p, r: [math.nan if "y" in x else 0.0 for x in r], r"line 2 \('qq'\) and the response 'y' is nan"),
        (lambda p, r: [math.inf for _ in r], r"line 1 .* is inf; it must be a finite number"),
        (lambda p, r: [1.0], "one number for each response, got 1 for 2"),
        (lambda p, r: ["high" for _ in r], "line 1 .* failed: ValueError"),
        (raises, "line 2 .* failed: ZeroDivisionError"),
        (only_together, "the reward of 2 responses failed together, but not one by one: ZeroDivisionError"),
    ],
)
def test_a_reward_that_fails_is_refused_by_prompt(reward: rewards.Scorer, message: str):
    with pytest.raises(TrainingError, match=message):
        score_responses(reward, PROMPTS, [["x"], ["y"]])


def test_what_a_reward_says_itself_is_passed_on():
    def refuses(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        raise DataError("no such character")

    with pytest.raises(DataError, match="no such character"):
        score_responses(refuses, PROMPTS, [["x"], ["y"]])
