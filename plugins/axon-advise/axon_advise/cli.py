"""`axon advise`: watch a trained learner play, and tell it what is good."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import numpy as np

from axon_advise.people import PersonalAnswer, append_answer, judge_people, read_answers
from axon_advise.report import TrainerSetReport, describe_trainers
from axon_advise.tables import AdviceTables
from axon_advise.trainer import AdviseTrainer
from axon_core import CheckpointError, UsageError
from axon_core.cli import echo, json_option, print_json
from axon_core.training import Recipe, RunFolder, build_trainer

__all__ = ["advise"]

_FILE = "feedback.jsonl"
_QUIT = ("q", "\x03", "\x04", "")


@click.group("advise")
def advise() -> None:
    """Give feedback to learners, and see whose feedback is reliable."""


@advise.command("play")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--as", "names", metavar="NAME", multiple=True, help="Who answers; repeatable: all are asked in turn.")
@click.option("--learner", metavar="SET", help="The set of trainers whose learner plays; by default the last one.")
@click.option("--episodes", default=1, show_default=True, type=click.IntRange(1), help="Episodes to watch.")
@click.option("--seed", default=0, show_default=True, type=int, help="Seed of what is random in the episodes.")
def play(run: Path, names: tuple[str, ...], learner: str | None, episodes: int, seed: int) -> None:
    """Watch the learner in RUN: press y if an action is good, n if it is bad, Enter to skip, q to end.

    Each answer is saved at once in RUN/feedback.jsonl and changes the policy; a later call continues with all of them.
    """
    trainer, row = _opened(run, learner)
    names = names or ("you",)
    if bad := next((name for name in names if not name.strip() or len(name) > 60 or not name.isprintable()), None):
        raise UsageError(f"--as needs a printable name of 1 to 60 characters, got {bad!r}")
    try:
        for episode in range(episodes):
            if not _episode(trainer, row, run / _FILE, names, np.random.default_rng([seed, episode])):
                break
    except KeyboardInterrupt:
        echo("\nStopped; every answer is saved.")
    for line in _people_lines(_judged(trainer, row, run / _FILE)):
        echo(line)


@advise.command("report")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--learner", metavar="SET", help="The set whose learner judges; by default the last one.")
@json_option
def report_people(run: Path, learner: str | None, as_json: bool) -> None:
    """Say how reliable the people are who gave feedback to the learner in RUN."""
    trainer, row = _opened(run, learner)
    found = _judged(trainer, row, run / _FILE)
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    for line in _people_lines(found):
        echo(line)


def _opened(run: Path, learner: str | None) -> tuple[AdviseTrainer, int]:
    """Return the run's trainer with one learner for each set, as it was saved, and the place of the learner's.

    Raises:
        UsageError: it is another trainer's run, or it has no such set.
        CheckpointError: the run is damaged, or has no model yet.
    """
    folder = RunFolder.open(run)
    tables = {name: table for name, table in folder.facts["recipe"].items() if name != "name"}
    recipe = Recipe.of(tables, str(run), str(run / "run.json"), ["trainer.batch_size=1"])
    if recipe.trainer.type != "advise":
        raise UsageError(f"{run} was trained by {recipe.trainer.type}; give a run of the trainer advise")
    trainer = build_trainer(recipe)
    assert isinstance(trainer, AdviseTrainer)
    saved = AdviceTables.load(folder.model)
    try:
        trainer.tables.load_state_dict(saved.state_dict())
    except RuntimeError as error:
        raise CheckpointError(f"the model in {run} is not that of its recipe: {error}") from None
    names = list(trainer.sets)
    if learner is not None and learner not in names:
        raise UsageError(f"--learner must be one of {', '.join(names)}, got {learner!r}")
    return trainer, names.index(learner) if learner is not None else len(names) - 1


def _judged(trainer: AdviseTrainer, row: int, file: Path) -> TrainerSetReport:
    answers = read_answers(file, trainer.environment.table.n_states, trainer.environment.table.n_actions)
    return judge_people(trainer, row, answers)[1]


def _people_lines(found: TrainerSetReport) -> list[str]:
    return describe_trainers("people", found) if found.trainers else ["Nobody has answered yet."]


def _episode(trainer: AdviseTrainer, row: int, file: Path, names: tuple[str, ...], rng: np.random.Generator) -> bool:
    """Show an episode and ask after each action; return whether another may follow."""
    env = trainer.environment
    answers = read_answers(file, env.table.n_states, env.table.n_actions)
    logits, _ = judge_people(trainer, row, answers)
    state, total = int(rng.choice(len(env.start), p=env.start)), 0.0
    step = 0
    for step in range(1, env.config.limit + 1):
        weights = np.exp(logits[state] - logits[state].max())
        action = int(rng.choice(env.n_actions, p=weights / weights.sum()))
        echo(f"\n{env.draw(state)}\naction {step}: {env.actions[action]}")
        for name in names:
            key = _key(f"{name}, is it good? [y/n, Enter skips, q ends] ")
            if key in _QUIT:
                return False
            if key in "yn":
                answers.append(PersonalAnswer(trainer=name, state=state, action=action, good=key == "y"))
                append_answer(file, answers[-1])
                logits, _ = judge_people(trainer, row, answers)
        k = int(rng.choice(env.table.following.shape[2], p=env.table.probability[state, action]))
        total += float(env.table.reward[state, action, k])
        if env.table.terminated[state, action, k]:
            break
        state = int(env.table.following[state, action, k])
    echo(f"The episode is over after {step} actions; it earned {total:g}.")
    return True


def _key(question: str) -> str:
    """Return the key that was pressed, or the first character of a line where the input is not a terminal."""
    echo(question, nl=False)
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.strip().lower()[:1] or ("\n" if line else "")
    key = click.getchar().lower()
    echo(key if key.isprintable() else "")
    return key
