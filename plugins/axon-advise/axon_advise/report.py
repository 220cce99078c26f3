"""What a set of trainers turned out to be: reliable, contrary, silent; and what cannot be known."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float, Int
from numpy import ndarray

from axon_core import config

__all__ = ["TrainerReport", "TrainerSetReport", "describe_trainers", "report_set"]

_AGAINST = 0.4
_WITH = 0.6


class TrainerReport(config.Config):
    """What is known of one trainer."""

    kind: str
    """The source's `type`, or a person's name."""
    truth: float | None
    """The true consistency, if it is known."""
    reliability: float | None
    """The mean estimate over learners; None where the trainer never answered."""
    spread: float
    """The standard deviation of the estimates over learners."""
    answers: float
    """Answers to a learner, the mean."""


class TrainerSetReport(config.Config):
    """What is known of a set of trainers."""

    trainers: tuple[TrainerReport, ...]
    """Each trainer."""
    contradictory: float
    """Pairs of state and action that were called both good and bad, the mean over learners."""


def report_set(
    kinds: Sequence[str],
    truth: Sequence[float | None],
    estimates: Float[ndarray, "t m"],
    good: Int[ndarray, "t s m a"],
    bad: Int[ndarray, "t s m a"],
) -> TrainerSetReport:
    """Return the report of trainers, given their estimates and all counts of answers."""
    answers = (good + bad).sum((1, 3))
    found: list[TrainerReport] = []
    for m, kind in enumerate(kinds):
        heard = answers[:, m] > 0
        values = estimates[heard, m]
        found.append(
            TrainerReport(
                kind=kind,
                truth=truth[m],
                reliability=float(values.mean()) if heard.any() else None,
                spread=float(values.std()) if heard.any() else 0.0,
                answers=float(answers[:, m].mean()),
            )
        )
    both = (good.sum(2) > 0) & (bad.sum(2) > 0)
    return TrainerSetReport(trainers=tuple(found), contradictory=float(both.sum((1, 2)).mean()))


def describe_trainers(name: str, report: TrainerSetReport) -> list[str]:
    """Return a report as lines of text: each trainer's reliability, and what to make of it."""
    if not report.trainers:
        return [f"{name}: no trainers"]
    lines = [f"{name}:"]
    for number, trainer in enumerate(report.trainers, 1):
        lines.append(f"  trainer {number} ({trainer.kind}): {_described(trainer)}")
    heard = [trainer.reliability for trainer in report.trainers if trainer.reliability is not None]
    if not heard:
        lines.append("  no trainer answered, so that learners had rewards alone and nothing is known of the trainers")
    elif len(heard) > 1 and max(heard) < _AGAINST:
        lines.append(
            "  all trainers seem to answer against what earns rewards: that is so, or their good and bad are swapped"
        )
    if report.contradictory and heard:
        lines.append(
            f"  {report.contradictory:,.0f} actions were called both good and bad; reliabilities weigh the answers"
        )
    return lines


def _described(trainer: TrainerReport) -> str:
    if trainer.reliability is None:
        return "never answered, reliability unknown"
    true = "" if trainer.truth is None else f" (true {trainer.truth:.2f})"
    if trainer.reliability < _AGAINST:
        verdict = ", answers against the others"
    elif trainer.reliability < _WITH:
        verdict = ", answers tell little"
    else:
        verdict = ""
    return f"reliability {trainer.reliability:.2f} ± {trainer.spread:.2f}{true}, {_answers(trainer.answers)}{verdict}"


def _answers(number: float) -> str:
    return "1 answer" if number == 1 else f"{number:,.0f} answers"
