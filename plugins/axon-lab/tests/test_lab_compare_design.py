"""What `axon compare` is asked for: axes, seeds and budgets are read, cells are checked, misuse gets one message."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from axon_core import Recipe, UsageError, build_trainer, fit
from axon_core.training import build_bare_trainer
from axon_lab.compare.cells import cache_bytes, check_cells
from axon_lab.compare.design import Design, choices_of, expand, parse_axes, parse_budget, parse_seeds
from axon_lab.compare.folder import ComparisonFolder
from axon_lab.compare.measurements import Measurements, Pace, points_at
from axon_lab.compare.results import Axis, Budget

ATTENTION = "model.attention.type"
PARTS = '''
from axon_core import ConfigError
from axon_gqa.attention import GroupedQueryAttention

class Fits(GroupedQueryAttention):
    """An attention of another author."""

class TooWide(GroupedQueryAttention):
    """One that this model is too small for."""
    def __init__(self, config, rotary=None):
        raise ConfigError([(("dim",), f"must be at least 1000, got {config.dim}")])

class Broken(GroupedQueryAttention):
    """One with a mistake."""
    def __init__(self, config, rotary=None):
        super().__init__(config, rotary)
        1 / 0
'''


def design(recipe: Path, *vary: str, budget: Budget | None = None, overrides: tuple[str, ...] = ()) -> Design:
    loaded, asked = Recipe.load(recipe), parse_axes(vary, overrides)
    base = Recipe.of(loaded.tables, loaded.name, loaded.source, overrides)
    axes = tuple(expand(base, axis) for axis in asked)
    return Design(
        recipe=loaded.name, tables=loaded.tables, overrides=overrides, asked=asked, axes=axes, seeds=(0,), budget=budget
    )


def checked(asked: Design) -> Design:
    return check_cells(asked, lambda done, total: None)[0]


def test_commas_within_brackets_and_quotes_are_part_of_a_value():
    (axis,) = parse_axes(['model.attention={type="GQA", n_kv_heads=1}, MHA,"a,b"'], ())
    assert axis == Axis(path="model.attention", values=('{type="GQA", n_kv_heads=1}', "MHA", '"a,b"'))


def test_the_first_axis_is_the_slowest():
    axes = (Axis(path="a", values=("1", "2")), Axis(path="b", values=("x", "y")))
    assert list(choices_of(axes)) == [("1", "x"), ("1", "y"), ("2", "x"), ("2", "y")]


@pytest.mark.parametrize(("steps", "number"), [(60, 5), (7, 5), (100_000, 8), (3, 5)])
def test_the_number_of_evaluations_does_not_depend_on_what_a_run_may_use(steps: int, number: int):
    points = points_at(steps, number)
    assert len(points) == min(steps, number)
    assert max(points) == steps


def test_a_star_finds_parts_outside_the_tree_and_says_why_others_do_not_fit(tiny_recipe, outside):
    targets = {
        key: f"lab_parts:{name}" for key, name in {"fits": "Fits", "wide": "TooWide", "broken": "Broken"}.items()
    }
    outside.install("lab-test-parts", {"attention": targets}, "lab_parts", PARTS)
    also = "from lab_parts import Fits as Also"
    outside.install("lab-test-more", {"attention": {"also": "lab_more:Also"}}, "lab_more", also)
    found = checked(design(tiny_recipe, f"{ATTENTION}=*"))
    fitting = [cell.values[0] for cell in found.cells]
    assert fitting[0] == "MHA"  # the recipe's own
    assert {"GQA", "MQA", "SWA", "fits", "also"} <= {*fitting}
    assert {left.values[0]: left.reason for left in found.left_out} == {
        "wide": "model.attention.dim: must be at least 1000, got 16",
        "broken": "ZeroDivisionError: division by zero",
    }


def test_cells_that_do_not_fit_together_are_left_out(tiny_recipe):
    found = checked(design(tiny_recipe, "model.n_heads=2,4", "model.dim=16,20"))
    (left,) = found.left_out
    assert left.values == ("4", "20")
    assert left.reason.startswith("model.rotary: a rotary dimension must be even, got 5;")
    assert "\n" not in left.reason and "--set" not in left.reason
    assert [cell.values for cell in found.cells] == [("2", "16"), ("2", "20"), ("4", "16")]


def test_what_is_known_of_a_cell_before_it_is_trained(tiny_recipe):
    mha, mqa = checked(design(tiny_recipe, "model.attention.type=MHA,MQA")).cells
    trainer = build_trainer(Recipe.load(tiny_recipe))
    assert mha.parameters == sum(p.numel() for p in trainer.models["model"].parameters())
    assert mha.cache_bytes_per_token == 2 * 16 * 4  # keys and values of 16 features, float32
    assert mqa.cache_bytes_per_token == 2 * 8 * 4
    assert mha.parameters - mqa.parameters == 2 * 16 * 8  # one head less for keys and for values
    # A weight of a matrix costs two operations a token forward, and four backward.
    assert mha.flops - mqa.flops == 6 * 2 * 16 * 8 * (4 * 16)


def test_a_state_that_does_not_grow_is_not_counted_per_token(tiny_recipe, monkeypatch):
    trainer = build_bare_trainer(Recipe.load(tiny_recipe))
    attention = trainer.models["model"].blocks[0].attention
    from axon_core.interfaces import StateSpec

    states = {"k": StateSpec((3,)), "whole": StateSpec((50,), per_token=False)}
    monkeypatch.setattr(attention, "state", lambda: states)
    assert cache_bytes(trainer) == 3 * 4


def test_budgets_become_steps(tiny_recipe):
    axis = "model.attention.type=MHA,MQA"
    assert [c.steps for c in checked(design(tiny_recipe, axis)).cells] == [4, 4]
    assert [c.steps for c in checked(design(tiny_recipe, axis, budget=Budget(unit="steps", amount=9))).cells] == [9, 9]
    tokens = checked(design(tiny_recipe, axis, budget=Budget(unit="tokens", amount=64 * 7 + 63)))
    assert [c.steps for c in tokens.cells] == [7, 7]  # 4 windows of 16 tokens
    batches = checked(design(tiny_recipe, "trainer.batch_size=4,8", budget=Budget(unit="tokens", amount=640)))
    assert [c.steps for c in batches.cells] == [10, 5]
    flops = checked(design(tiny_recipe, axis, budget=Budget(unit="flops", amount=1e8)))
    assert all(cell.steps * cell.flops <= 1e8 < (cell.steps + 1) * cell.flops for cell in flops.cells)
    seconds = checked(design(tiny_recipe, axis, budget=Budget(unit="seconds", amount=3)))
    assert [c.steps for c in seconds.cells] == [None, None]  # measured first


def test_a_budget_of_seconds_becomes_steps_by_the_pace_of_the_cell(tiny_recipe, tmp_path):
    asked = design(tiny_recipe, "model.attention.type=MHA,MQA", budget=Budget(unit="seconds", amount=3))
    folder = ComparisonFolder.create(tmp_path, checked(asked))
    assert folder.steps(0) is None
    folder.write_pace(0, 0.07)
    folder.write_pace(1, 50.0)
    assert [folder.steps(0), folder.steps(1)] == [42, 1]  # at least one update
    assert [cell.flops for cell in folder.comparison().cells] == [
        42 * folder.design.cells[0].flops,
        folder.design.cells[1].flops,
    ]


def test_a_pace_is_that_of_the_updates_without_the_first_two(tiny_recipe):
    measured = Pace(0.0)
    trainer = build_trainer(Recipe.load(tiny_recipe, ["trainer.steps=1000"]))
    loss, waits = trainer.loss, iter([0.5, 0.5, 0.1, 0.1, 0.1])

    def slowly(data):
        time.sleep(next(waits))
        return loss(data)

    trainer.loss = slowly
    result = fit(trainer, hooks=[measured], progress=False)
    assert (result.status, result.step) == ("stopped", 5)
    assert 0.1 <= measured.median < 0.4


def test_evaluations_and_checkpoints_do_not_count_as_training(tiny_recipe, tmp_path, monkeypatch):
    trainer = build_trainer(Recipe.load(tiny_recipe, ["trainer.steps=6"]))
    evaluate = trainer.evaluate

    def slowly():
        time.sleep(1.0)
        return evaluate()

    monkeypatch.setattr(trainer, "evaluate", slowly)
    measured = Measurements(tmp_path / "measurements.json", points_at(6, 3), "loss")
    begun = time.perf_counter()
    result = fit(trainer, tmp_path / "run", hooks=[measured], progress=False)
    assert measured.seconds < time.perf_counter() - begun - 3.0
    assert measured.units == 6 * 4 * 16  # windows of 16 tokens
    assert [point.step for point in measured.curve] == [2, 4, 6]
    assert measured.curve[-1].value == result.metrics["loss"]


def test_a_former_design_is_read_as_it_was_written(tiny_recipe):
    found = checked(design(tiny_recipe, "model.attention.type=MHA,MQA", budget=Budget(unit="steps", amount=3)))
    assert Design.model_validate(json.loads(found.model_dump_json())) == found


MISUSE = {
    "no axis": ([], "nothing is varied"),
    "an axis without values": (["--vary", "model.dim="], "a value is empty"),
    "an axis without a field": (["--vary", "=1,2"], "--vary takes table.field=value,value"),
    "an axis twice": (["--vary", "model.dim=16,32", "--vary", "model.dim=8"], "varied twice"),
    "a part twice": (["--vary", "model.attention=MHA", "--vary", f"{ATTENTION}=MQA"], "varied twice"),
    "a value twice": (["--vary", "trainer.optimizer.lr=0.1,1e-1"], "stands there twice"),
    "a star beside values": (["--vary", f"{ATTENTION}=*,MHA"], "nothing can stand beside it"),
    "a star for no part": (["--vary", "model.dim=*"], "no part of tiny stands there"),
    "an unknown part": (["--vary", f"{ATTENTION}=MHA,Multihead"], f"{ATTENTION}=Multihead fits in no cell"),
    "an unknown field": (["--vary", "model.depth=1,2"], "model.depth=1 fits in no cell"),
    "an unknown table": (["--vary", "modle.dim=1,2"], "did you mean"),
    "a field set and varied": (["--vary", "model.dim=16,32", "--set", "model.dim=8"], "--set sets the same place"),
    "the seed varied": (["--vary", "trainer.seed=1,2"], "chosen by --seeds"),
    "a million cells": (
        [
            "--vary",
            f"trainer.warmup={','.join(map(str, range(1000)))}",
            "--vary",
            f"trainer.batch_size={','.join(map(str, range(1, 1001)))}",
        ],
        "1,000,000 cells",
    ),
    "no seeds": (["--vary", "model.dim=16,32", "--seeds", "0"], "--seeds must be at least 1, got 0"),
    "negative seeds": (["--vary", "model.dim=16,32", "--seeds", "-3"], "--seeds must be at least 1, got -3"),
    "a seed twice": (["--vary", "model.dim=16,32", "--seed-list", "1,2,1"], "a seed twice"),
    "a seed below 0": (["--vary", "model.dim=16,32", "--seed-list", "1,-2"], "numbers of at least 0"),
    "seeds twice": (["--vary", "model.dim=16,32", "--seed-list", "1", "--seeds", "1"], "two ways to say the same"),
    "too many seeds": (["--vary", "model.dim=16,32", "--seeds", "9999999999"], "at most 1,000 runs"),
    "two budgets": (["--vary", "model.dim=16,32", "--budget", "steps=3", "--budget", "seconds=3"], "one budget"),
    "a budget twice": (["--vary", "model.dim=16,32", "--budget", "steps=3,tokens=9"], "one budget"),
    "a budget of nothing": (["--vary", "model.dim=16,32", "--budget", "steps=0"], "a whole number above 0"),
    "a budget in hours": (["--vary", "model.dim=16,32", "--budget", "hours=3"], "--budget takes steps, seconds"),
    "half a step": (["--vary", "model.dim=16,32", "--budget", "steps=2.5"], "a whole number above 0"),
    "budget and steps": (["--vary", "trainer.steps=3,4", "--budget", "steps=3"], "leave one out"),
    "budget and set steps": (
        ["--vary", "model.dim=16,32", "--set", "trainer.steps=3", "--budget", "flops=3"],
        "leave one out",
    ),
    "less than an update": (["--vary", "model.dim=16,32", "--budget", "tokens=10"], "less than one update"),
    "no jobs": (["--vary", "model.dim=16,32", "--jobs", "0"], "--jobs must be at least 1, got 0"),
    "an unknown metric": (["--vary", "model.dim=16,32", "--metric", "bleu"], "choose one of loss, bits_per_byte"),
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse_gets_one_message_before_any_run(name, compare, tiny_recipe, tmp_path, capsys):
    words, message = MISUSE[name]
    assert compare(tiny_recipe, *words, "--out", tmp_path / "out") == 2
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("checking cells")]
    assert len(said) == 1 and said[0].startswith("Error: ") and message in said[0]
    assert not (tmp_path / "out").exists()


def test_a_recipe_of_another_command_is_refused(compare, tmp_path, capsys):
    assert compare("align-tiny", "--vary", "model.dim=1,2", "--out", tmp_path / "out") == 2
    assert "axon align align-tiny" in capsys.readouterr().err


def test_a_folder_that_is_not_a_comparison_is_left_alone(compare, tiny_recipe, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    words = [tiny_recipe, "--vary", "model.dim=16,32", "--out"]
    assert compare(*words, tmp_path) == 2
    assert "not a comparison" in capsys.readouterr().err
    assert compare(*words, tmp_path / "mine.txt") == 2
    assert "is a file" in capsys.readouterr().err
    assert compare("--report", tmp_path) == 2
    assert "has no design.json" in capsys.readouterr().err
    assert compare("--report", tmp_path, *words[:-1]) == 2
    assert "give its folder alone" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_seeds_and_budgets_are_read():
    assert parse_seeds(None, None) == (0, 1, 2)
    assert parse_seeds(None, "7, 3") == (7, 3)
    assert parse_budget(["flops=1e12"], (), ()) == Budget(unit="flops", amount=1e12)
    with pytest.raises(UsageError, match="above 0"):
        parse_budget(["seconds=nan"], (), ())
