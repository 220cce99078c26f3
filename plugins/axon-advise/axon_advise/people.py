"""Feedback from people: a file of answers to which lines are only added, and what it says of each person."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import NonNegativeInt

from axon_advise.estimation import Answers, variational_inference
from axon_advise.learning import Learners, shaped_logits
from axon_advise.report import TrainerSetReport, report_set
from axon_advise.shaping import trainer_scores
from axon_advise.trainer import AdviseTrainer
from axon_core import CheckpointError, ConfigError, DataError, config, parse_json, to_json, validate

__all__ = ["PersonalAnswer", "append_answer", "judge_people", "read_answers"]

_MOST_BYTES = 64 * 2**20


class PersonalAnswer(config.Config):
    """One answer of a person, a line of the file."""

    trainer: str
    """Who answered."""
    state: NonNegativeInt
    """The state in which the action was taken."""
    action: NonNegativeInt
    """The action."""
    good: bool
    """Whether it was called good."""


def read_answers(file: Path, states: int, actions: int) -> list[PersonalAnswer]:
    """Return the answers in a file, none if there is no file; a last line that a kill cut off is left out.

    Raises:
        DataError: the file cannot be read, or a line is not an answer about one of these states and actions.
    """
    try:
        if file.exists() and file.stat().st_size > _MOST_BYTES:
            raise DataError(f"{file} must have at most {_MOST_BYTES:,} bytes; split it")
        text = file.read_text(encoding="utf-8-sig") if file.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {file}: {error}") from None
    lines = text.split("\n")
    found: list[PersonalAnswer] = []
    for number, line in enumerate(lines[:-1], 1):
        if not line.strip():
            continue
        try:
            answer = validate(PersonalAnswer, parse_json(line))
        except (ConfigError, ValueError) as error:
            raise DataError(f"{file}, line {number} is not an answer ({error}): correct or remove it") from None
        if answer.state >= states or answer.action >= actions:
            raise DataError(
                f"{file}, line {number}: states are numbered below {states} and actions below {actions}, got state "
                f"{answer.state} and action {answer.action}; the answers belong to another environment"
            )
        found.append(answer)
    return found


def append_answer(file: Path, answer: PersonalAnswer) -> None:
    """Add an answer as the file's last line, and wait until it is on the disk.

    Raises:
        CheckpointError: the file cannot be written to.
    """
    line = to_json(answer.model_dump(mode="json")) + "\n"
    try:
        with file.open("a+b") as out:
            out.seek(0)
            content = out.read()
            if (whole := content.rfind(b"\n") + 1) < len(content):  # a kill cut off the last line
                out.truncate(whole)
            out.write(line.encode())
            out.flush()
            os.fsync(out.fileno())
    except OSError as error:
        raise CheckpointError(f"cannot save the answer to {file}: {error.strerror}; earlier answers are safe") from None


def judge_people(
    trainer: AdviseTrainer, row: int, answers: Sequence[PersonalAnswer]
) -> tuple[np.ndarray, TrainerSetReport]:
    """Return the shaped logits `(s a)` of a learner who also hears people, and a report of these.

    Their consistencies are learnt together with those of the run's trainers by `variational_inference`, with Beta(1, 1)
    for each and the prior softmax(Q / temperature) of actions: a person is judged by what the learner values, and by
    what others say. The spread is the standard deviation of the consistency's distribution.
    """
    learners: Learners = trainer.learners()
    names = list(dict.fromkeys(answer.trainer for answer in answers))
    counts = np.zeros((2, *learners.q.shape[1:2], len(names), learners.q.shape[2]), dtype=np.int32)
    for answer in answers:
        counts[0 if answer.good else 1, answer.state, names.index(answer.trainer), answer.action] += 1
    good, bad = (
        np.concatenate((old[row], new), 1) for old, new in zip((learners.good, learners.bad), counts, strict=True)
    )
    heard = np.flatnonzero((good + bad).any((1, 2)))
    weight = np.append(learners.weight[row], np.zeros(len(names)))[None]  # nothing is known of people at first
    several, prior = trainer.config.several_optimal, learners.q[row, heard] / trainer.config.temperature
    known = Answers.of(good[heard], bad[heard], prior, several=several)
    beliefs = variational_inference(known, weight)
    scores = trainer_scores((good - bad).astype(np.float64), beliefs.weight)
    means = beliefs.consistency[:, weight.shape[1] - len(names) :]
    report = report_set(names, [None] * len(names), means, counts[None, 0], counts[None, 1])
    spread = [(x * (1 - x) / (person.answers + 3)) ** 0.5 for x, person in zip(means[0], report.trainers, strict=True)]
    people = [person.model_copy(update={"spread": float(s)}) for s, person in zip(spread, report.trainers, strict=True)]
    logits = shaped_logits(learners.q[row], scores, trainer.settings)
    return logits, report.model_copy(update={"trainers": tuple(people)})
