"""Every trainer's evaluation tells how far it has come, to the end, and has a cap in its own unit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest

from axon_core import TRAINERS, Trainer
from axon_core.training.build import build_trainer
from axon_core.training.evaluation import evenly_spaced, report_progress_to
from axon_core.training.loop import evaluate
from axon_core.training.recipe import Recipe


class Case(NamedTuple):
    cap: str
    unit: str | None
    """What the numbers say was read, where that is not all; None where there is always as much as is asked for."""
    data: Mapping[str, Any] = {}


CASES = {
    "advise": Case("evaluated", None),
    "causal_lm": Case("eval_tokens", "tokens", {"held_out": 0.5}),
    "ddpm": Case("eval_images", "images"),
    "dpo": Case("eval_comparisons", "comparisons"),
    "kto": Case("eval_answers", "answers"),
    "ppo": Case("eval_prompts", "prompts", {"held_out": 0.6}),
    "ppo_control": Case("episodes", None),
    "reward": Case("eval_prompts", "prompts"),
    "sft": Case("eval_examples", "examples"),
    "translation": Case("eval_sentences", "sentences"),
}


def build(key: str, data: Mapping[str, Any] | None = None, **options: Any) -> Trainer:
    example = {name: dict(table) for name, table in TRAINERS[key].examples[0].items()}
    example["trainer"] |= options
    example["data"] |= {**CASES[key].data, **(data or {})}
    return build_trainer(Recipe.of(example, "small", "small.toml"))


def evaluated(trainer: Trainer) -> tuple[dict[str, float], list[tuple[int, int, str]]]:
    told: list[tuple[int, int, str]] = []
    with report_progress_to(lambda done, total, doing: told.append((done, total, doing))):
        return evaluate(trainer), told


def test_every_trainer_that_evaluates_is_here() -> None:
    assert {key for key in TRAINERS if TRAINERS[key].evaluate is not Trainer.evaluate} == set(CASES)


@pytest.mark.parametrize("key", CASES)
def test_an_evaluation_tells_how_far_it_is(key: str) -> None:
    _, told = evaluated(build(key))
    parts: list[list[tuple[int, int, str]]] = []
    for one in told:
        if not one[0] and (not parts or parts[-1][-1][0]):
            parts.append([])
        parts[-1].append(one)
    assert parts
    for part in parts:
        assert part == sorted(part) and len({(total, doing) for _, total, doing in part}) == 1
        assert part[0][0] == 0 and part[-1][0] == part[-1][1] > 0
    doing = [part[0][2] for part in parts]
    others = {"ddpm": ["sampling", "classifier"], "translation": ["translating"]}
    others |= {name: ["reference", "reference"] for name in ("dpo", "kto")}
    assert sorted(doing) == sorted(["evaluating", *others.get(key, [])])


@pytest.mark.parametrize("key", [key for key, case in CASES.items() if case.unit])
def test_a_cap_bounds_an_evaluation_and_is_told(key: str) -> None:
    cap, unit, _ = CASES[key]
    whole, _ = evaluated(build(key))
    assert f"held_out_{unit}" not in whole
    capped, _ = evaluated(build(key, **{cap: 1}))
    read, of = capped.pop(f"{unit}"), capped.pop(f"held_out_{unit}")
    assert 1 <= read < of
    assert capped.keys() <= whole.keys() and capped != whole
    enough, _ = evaluated(build(key, **{cap: int(of)}))
    assert enough == whole


def test_a_cap_of_episodes_is_how_many_are_played() -> None:
    trainer = build("ppo_control", episodes=2)
    assert evaluated(trainer)[1][-1] == (2, 2, "evaluating")


@pytest.mark.parametrize(
    ("n", "most", "numbers"), [(5, 5, [0, 1, 2, 3, 4]), (5, 9, [0, 1, 2, 3, 4]), (7, 3, [0, 2, 4])]
)
def test_what_is_read_is_spread_evenly(n: int, most: int, numbers: list[int]) -> None:
    assert list(evenly_spaced(n, most)) == numbers


@pytest.mark.parametrize("key", [key for key in CASES if key not in ("advise", "ppo_control", "translation")])
def test_a_validation_part_is_the_only_one_evaluated_and_not_trained_on(key: str) -> None:
    def sizes(data: Any) -> tuple[int, int]:
        return len(data.train), len(data.held_out)

    plain: Any = build(key)
    chosen: Any = build(key, {"validation": 0.5})
    held = sizes(plain.data)[0] - sizes(chosen.data)[0]
    assert sizes(chosen.data)[1] == held > 0
    assert chosen.data.digest != plain.data.digest
    assert set(evaluated(chosen)[0]) == set(evaluated(plain)[0])
