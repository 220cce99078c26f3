"""The board: its rules, an entry that is run again, one that is entered, and what is refused before any training."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from axon_core.cli import main
from axon_core.errors import ConfigError, Interrupted, UsageError
from axon_core.training import Recipe
from axon_lab.board.folders import find_task, read_tasks, recipe_digest
from axon_lab.board.pages import board_page, record_curve
from axon_lab.board.rules import budget_problems
from axon_lab.board.tasks import BoardTask

ROOT = Path(__file__).parents[3]
RECIPE = """
[data]
path = "{text}"
held_out = 0.2

[model]
type = "xllama"
context = 8
dim = 16
n_layers = 1
n_heads = 2

[trainer]
type = "causal_lm"
steps = {steps}
batch_size = 4
eval_every = 1
"""
TASK = """
title = "Letters"
summary = "A few letters."
metric = "loss"
unit = "nats"
tolerance = 1e-4
parameters = 6000
seconds = {seconds}
seeds = 2

[data]
path = "{text}"
held_out = 0.2

[trainer]
type = "causal_lm"
steps = 4
batch_size = 4
context = 8

[[reference]]
title = "a guess"
value = 2.5
source = "nowhere"
"""
HOW = ["--changed", "all of it", "--chosen-on", "validation", "--how", "by loss", "--candidates", "3"]


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of records with a task and a recipe beside it."""
    (tmp_path / "text.txt").write_text("abcdefgh" * 60)
    (tmp_path / "records/letters").mkdir(parents=True)
    (tmp_path / "records/letters/task.toml").write_text(TASK.format(text=tmp_path / "text.txt", seconds=60))
    (tmp_path / "mine.toml").write_text(RECIPE.format(text=tmp_path / "text.txt", steps=4))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "records"


def enter(*words: str) -> int:
    return main(["board", "enter", "letters", "mine.toml", "--seeds", "3,4", *HOW, *words])


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["board", *words]) in (1, 2)
    found = capsys.readouterr()
    return found.out + found.err


def test_a_recipe_is_entered_and_checked_again(records: Path, capsys: pytest.CaptureFixture[str]):
    assert enter("--name", "first") == 0
    folder = find_task(records, "letters")
    (one,) = folder.entries
    assert one.name == "001-first" and one.recipe.read_text() == Path("mine.toml").read_text()
    assert [run.seed for run in one.entry.run] == [3, 4] and one.entry.run[0].value != one.entry.run[1].value
    assert one.entry.selection.candidates == 3 and not one.entry.remarks
    assert one.entry.mean == pytest.approx(sum(run.value for run in one.entry.run) / 2)
    assert one.entry.digest == recipe_digest(Recipe.load(one.recipe))
    (metrics,) = Path("runs/board").glob("*/seed-3/metrics.jsonl")
    steps = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert {line["step"] for line in steps if line["split"] == "held_out"} == {4}  # evaluated once, at the end

    capsys.readouterr()
    assert main(["board", "check", "letters", "--seed", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["holds"] and [seed["seed"] for seed in found["seeds"]] == [4]
    assert found["seeds"][0]["measured"] == one.entry.run[1].value
    assert main(["board", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["record"] == "001-first"
    for words in ([], ["show", "letters"]):
        assert main(["board", *words]) == 0
        assert f"{one.entry.mean:.4f}" in capsys.readouterr().out


def test_a_figure_that_is_not_measured_again_does_not_hold(records: Path, capsys: pytest.CaptureFixture[str]):
    assert enter() == 0
    file = records / "letters/001-mine.toml"
    text = file.read_text()
    value = re.search(r"value = (\S+)", text)[1]
    file.write_text(text.replace(value, str(float(value) - 0.01)))
    assert main(["board", "check", "letters", "1", "--seed", "3"]) == 1
    assert "+0.0100" in (out := capsys.readouterr().out) and "does not hold, within 0.0001 nats" in out
    file.write_text(text)
    recipe = records / "letters/recipes/001-mine.toml"
    recipe.write_text(recipe.read_text().replace("dim = 16", "dim = 8"))
    assert "the recipe is not the one that was run" in refused(capsys, "check", "letters")


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("held_out = 0.2", "held_out = 0.1", "data.held_out must be 0.2, got 0.1"),
        ("held_out = 0.2", "held_out = 0.2\nvalidation = 0.1", "data.validation must be left out, got 0.1"),
        ("steps = 4", "steps = 5", "trainer.steps is the task's: it must be 4, got 5"),
        ("context = 8", "context = 16", "trainer.context is the task's: it must be 8, got 16"),
        ("dim = 16", "dim = 64", "a model has at most 6,000 parameters, got "),
        ('type = "xllama"', 'init = "elsewhere"', "starts from no saved weights, but model.init names some"),
    ],
)
def test_what_an_entry_may_not_change_is_refused_before_any_training(
    records: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, rule: str
):
    recipe = Path("mine.toml")
    recipe.write_text(recipe.read_text().replace(old, new, 1))
    assert enter() == 2
    assert rule in capsys.readouterr().err
    assert not Path("runs").exists() and not find_task(records, "letters").entries


def test_the_held_out_part_is_evaluated_once_for_each_recipe(records: Path, capsys: pytest.CaptureFixture[str]):
    assert enter() == 0
    again = Path("mine.toml")  # other words, the same training
    again.write_text(f'summary = "new"\n# a remark\n{again.read_text()}save_every = 2\n')
    assert enter("--name", "again") == 2
    assert "this recipe is the entry 001-mine already" in capsys.readouterr().err
    for seeds, rule in (
        ("3", "needs at least 2 seeds, got 1"),
        ("3,3", "each seed counts once"),
        ("3,x", "whole numbers with commas"),
    ):
        assert rule in refused(capsys, "enter", "letters", "mine.toml", *HOW, "--seeds", seeds)
    message = refused(capsys, "enter", "letters", "mine.toml", *HOW, "--seeds", "3,4", "--chosen-seeds", "1,4")
    assert "seeds take no part in the choice, but 4 did" in message
    again.write_text(again.read_text().replace("n_heads = 2", "n_heads = 1"))
    assert enter("--name", "Again!") == 2
    assert enter("--name", "again", "--dry-run") == 0
    assert len(find_task(records, "letters").entries) == 1
    assert enter("--name", "again") == 0
    assert [one.name for one in find_task(records, "letters").entries] == ["001-mine", "002-again"]


def test_what_finished_before_a_kill_is_not_trained_again(
    records: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from axon_lab.board import running

    trained: list[int] = []
    real = running.run_seed

    def dying(task, recipe, folder):
        trained.append(recipe.trainer.options["seed"])
        if trained == [3, 4]:
            folder.mkdir()
            (folder / "half").write_text("")
            raise KeyboardInterrupt
        return real(task, recipe, folder)

    monkeypatch.setattr(running, "run_seed", dying)
    assert enter() == 130 and not find_task(records, "letters").entries
    assert enter() == 0 and trained == [3, 4, 4]
    assert "seed 3 (1 of 2): finished before" in capsys.readouterr().err


def test_an_interrupted_training_is_repeated_and_not_continued(
    records: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from axon_lab.board import running

    def interrupted(*_: object, **__: object) -> None:
        raise Interrupted("interrupted after step 1; everything is saved. Resume with axon train")

    monkeypatch.setattr(running, "fit", interrupted)
    assert enter() == 130
    err = capsys.readouterr().err
    assert "interrupted during the training with seed 3" in err and "repeat the command" in err
    assert "axon train" not in err


def test_the_budget_is_of_the_processor_where_that_is_known():
    task = BoardTask(title="t", summary="s", metric="loss", unit="nats", tolerance=0, seconds=60, data={}, trainer={})
    assert not budget_problems(task, [(0, 500.0, 119.0), (1, 59.0, None)])
    assert "120 seconds of the processor, 60 on 2 cores, but that with seed 0 took 121" in str(
        budget_problems(task, [(0, 50.0, 121.0)])
    )
    assert "60 seconds on 2 cores, but that with seed 1 took 61" in str(budget_problems(task, [(1, 61.0, None)]))
    assert not budget_problems(task.model_copy(update={"seconds": None}), [(0, 1e9, 1e9)])


def test_a_training_over_the_budget_makes_no_entry(records: Path, capsys: pytest.CaptureFixture[str]):
    task = records / "letters/task.toml"
    task.write_text(task.read_text().replace("seconds = 60", "seconds = 0.001"))
    assert enter() == 2
    assert "train fewer steps or a smaller model" in capsys.readouterr().err
    assert not find_task(records, "letters").entries


def test_the_page_has_the_record_over_time_and_hostile_words_are_text(
    records: Path, capsys: pytest.CaptureFixture[str]
):
    assert enter() == 0
    file = records / "letters/001-mine.toml"
    for number, day, shift in ((2, "2030-01-01", 0.1), (3, "2030-02-01", -0.2)):
        text = re.sub(r'date = "[^"]*"', f'date = "{day}"', file.read_text())
        text = re.sub(r"value = (\S+)", lambda found, shift=shift: f"value = {float(found[1]) + shift}", text)
        text = re.sub(r'changed = "[^"]*"', 'changed = "<script>alert(1)</script> | *x*"', text)
        (records / f"letters/00{number}-other.toml").write_text(text)
    folder = find_task(records, "letters")
    assert [one.name for one in folder.history] == ["001-mine", "003-other"]
    assert folder.record is folder.entries[2] and folder.find("2") is folder.entries[1]
    page = board_page([folder])
    assert "<script>" not in page and "&lt;script&gt;alert(1)&lt;/script&gt; \\| \\*x\\*" in page
    assert "**003-other**" in page and "| 002-other" in page and "- To compare with: a guess, 2.5. nowhere." in page
    picture = ElementTree.fromstring(record_curve(folder))
    svg = "{http://www.w3.org/2000/svg}"
    dots = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in picture.iter(f"{svg}circle")]
    assert dots[0][0] < dots[1][0] < dots[2][0] and dots[1][1] < dots[0][1] < dots[2][1]  # lower is better
    line = picture.findall(f"{svg}path")[-1].get("d")
    assert line == f"M{dots[0][0]} {dots[0][1]}H{dots[2][0]}V{dots[2][1]}H624"
    assert main(["board", "page", "--out", "site"]) == 0
    assert Path("site/board.md").read_text() == page and Path("site/board-letters.svg").exists()


def test_wrong_records_are_named(records: Path, tmp_path: Path):
    with pytest.raises(UsageError, match=r"there is no task 'words' in .*; it has: letters"):
        find_task(records, "words")
    with pytest.raises(UsageError, match="the task letters has no entry yet"):
        find_task(records, "letters").find()
    with pytest.raises(UsageError, match="there are no records at"):
        read_tasks(tmp_path / "nowhere")
    (records / "letters/first.toml").write_text("")
    with pytest.raises(ConfigError, match=r"first.toml: an entry is named by three digits"):
        read_tasks(records)
    (records / "letters/first.toml").rename(records / "letters/001-first.toml")
    with pytest.raises(ConfigError, match=r"001-first.toml: .*title"):
        read_tasks(records)


@pytest.mark.skipif(not (ROOT / "records").is_dir(), reason="needs the repository")
def test_the_repositorys_records_keep_the_rules_that_need_no_training():
    from axon_lab.board.rules import entry_problems, recipe_problems
    from axon_lab.board.running import load_recipe

    tasks = read_tasks(ROOT / "records")
    assert {task.name for task in tasks} == {"shakespeare", "multi30k", "digits", "text"}
    for folder in tasks:
        for one in folder.entries:
            recipe = load_recipe(one.recipe)
            assert not entry_problems(folder, one.entry, recipe) + recipe_problems(folder.task, recipe), one.name
        assert len({one.entry.digest for one in folder.entries}) == len(folder.entries)


def test_a_figure_may_be_from_the_trainers_own_evaluation_of_the_saved_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    Path("src.txt").write_text("ab\nbc\n")
    Path("ref.txt").write_text("ba\ncb\n")
    data = '[data]\ntrain = { reverse = 40 }\nvalid = { reverse = 4 }\ntokenizer = "byte"\n'
    model = '[model]\ntype = "transformer"\ndim = 16\nn_heads = 2\nencoder_layers = 1\ndecoder_layers = 1\n'
    trainer = '[trainer]\ntype = "translation"\nsteps = 2\n'
    Path("small.toml").write_text(f"{data}{model}{trainer}batch_size = 64\n")
    Path("records/words").mkdir(parents=True)
    Path("records/words/task.toml").write_text(
        'title = "t"\nsummary = "s"\nmetric = "sentences"\nunit = "sentences"\nhigher_is_better = true\ntolerance = 0\n'
        f'seeds = 1\n{data}{trainer}[evaluation]\nsrc = "src.txt"\nref = "ref.txt"\nbeam = 1\n'
    )
    words = ["board", "enter", "words", "small.toml", "--seeds", "3", *HOW]
    assert main(words) == 0
    assert find_task(Path("records"), "words").entries[0].entry.mean == 2
    task = Path("records/words/task.toml")
    task.write_text(task.read_text().replace('"sentences"\nunit', '"accuracy"\nunit'))
    assert main(["board", "check", "words"]) == 2
    assert "the evaluation has no number 'accuracy', but bleu, sentences" in capsys.readouterr().err


def test_what_was_kept_of_earlier_trainings_is_compared_with(records: Path, capsys: pytest.CaptureFixture[str]):
    assert enter() == 0
    file = records / "letters/001-mine.toml"
    values = [float(value) for value in re.findall(r"value = (\S+)", file.read_text())]
    kept = file.read_text().partition("[[run]]")[0]
    for lowest, code in ((min(values), 0), (max(values) - 1e-3, 1)):
        spread = f"seeds = [3, 4]\nmean = 2.0\nlowest = {lowest}\nhighest = {max(values)}\nseconds = 1\n"
        file.write_text(f"{kept}[spread]\n{spread}")
        assert main(["board", "check", "letters", "--seeds", "3,4"]) == code
    assert main(["board", "show", "letters"]) == 0
    assert "(seeds 3, 4)" in capsys.readouterr().out
    file.write_text(kept)
    assert "give the trainings as [[run]]" in refused(capsys, "show", "letters")
