"""The stage `rater_report`: who is reliable, and what it is worth to know, where the truth is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from axon_advise.raters.ratings import Rating, draw_ratings, ratings_table, read_ratings
from axon_core import CheckpointError, DataError, at, expanded, in_markdown, parse_json, to_json
from axon_core.alignment import score_responses
from axon_core.checkpoint import new_folder
from axon_core.registry import Spec, registry_of
from axon_core.text import Ranking, line_names, read_records
from axon_core.training import model_folder
from axon_instructgpt import Stage

__all__ = ["RaterReport", "order_accuracy", "raters_page"]


def order_accuracy(scores: Float[Tensor, "p k"], truth: Float[Tensor, "p k"]) -> tuple[float, int]:
    """Return the share of pairs, of different true reward, that scores order rightly, and how many pairs there are.

    Equal scores count half.

    >>> order_accuracy(torch.tensor([[1.0, 2.0, 2.0]]), torch.tensor([[0.0, 1.0, 1.0]]))
    (1.0, 2)
    """
    i, j = torch.triu_indices(scores.shape[1], scores.shape[1], offset=1)
    want, got = ((values[:, i] - values[:, j]).sign() for values in (truth, scores))
    kept = want != 0
    right = (got == want).double() + (got == 0).double() / 2
    return right[kept].mean().item(), int(kept.sum())


class RaterReport(Stage):
    """Compares what was learnt of raters with the truth, and reward models by how they order held-out responses.

    Writes `report.json`, `report.md` and, where matplotlib is installed, `raters.png`.
    """

    class Config(Stage.Config):
        """What is compared."""

        rated: str
        """The folder of a stage `rated`, which knows the true reliabilities."""
        runs: dict[str, str] = Field(min_length=1)
        """The folder of each run that learnt reliabilities, by the name it has in the report."""
        reward_models: dict[str, str]
        """The folder of each reward model, by name."""
        rankings: str
        """A folder of the stage `comparisons`, which no stage has learnt from."""
        reward: Spec
        """The known reward, by `type`."""
        policies: str | None = None
        """The folder of a stage `report`, whose win rates are repeated."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        with at("reward"):
            registry_of("reward").config(config.reward)

    def run(self, out: Path) -> None:
        """Measure and write.

        Raises:
            CheckpointError: a run's or a model's folder cannot be read.
            DataError: the rankings cannot be read, or no two responses have different rewards.
        """
        c = self.config
        truth = {name: float(rater["reliability"]) for name, rater in _facts(c.rated, "facts.json")["raters"].items()}
        runs = {name: read_ratings(model_folder(expanded(folder, CheckpointError))) for name, folder in c.runs.items()}
        accuracies, pairs = self._accuracies()
        wins = None
        if c.policies is not None:
            found = _facts(c.policies, "report.json")["policies"]
            wins = {name: (each["win_rate"], each["win_rate_error"]) for name, each in found.items()}
        facts = {
            "truth": truth,
            "runs": {name: [{**asdict(one), "verdict": one.verdict} for one in found] for name, found in runs.items()},
            "accuracies": accuracies,
            "pairs": pairs,
            "win_rates": wins,
        }
        with new_folder(out) as folder:
            (folder / "report.json").write_text(to_json(facts, indent=1, ensure_ascii=False), encoding="utf-8")
            (folder / "report.md").write_text(raters_page(runs, truth, accuracies, pairs, wins), encoding="utf-8")
            draw_ratings(runs, folder / "raters.png", truth)

    def _accuracies(self) -> tuple[dict[str, float], int]:
        """Return how well each reward model orders the held-out responses, and how many pairs are compared."""
        c, rewards = self.config, registry_of("reward")
        file = expanded(c.rankings, CheckpointError) / "rankings.jsonl"
        rankings = read_records(file, Ranking)
        named = [*zip(line_names(rankings, file), (ranking.texts()[0] for ranking in rankings), strict=True)]
        written = [list(ranking.responses) for ranking in rankings]
        ends = [[i not in one.unfinished for i in range(len(one.responses))] for one in rankings]
        with at("reward"):
            known = score_responses(rewards.build(c.reward), named, written, ends)
        found, pairs = dict[str, float](), 0
        for name, folder in c.reward_models.items():
            judge = rewards.build({"type": "reward_model", "path": folder})
            found[name], pairs = order_accuracy(score_responses(judge, named, written, ends), known)
        if not pairs:
            raise DataError(f"no two responses in {file} have different rewards; sample more, or another reward")
        return found, pairs


def raters_page(
    runs: Mapping[str, list[Rating]],
    truth: Mapping[str, float],
    accuracies: Mapping[str, float],
    pairs: int,
    wins: Mapping[str, tuple[float, float | None]] | None,
) -> str:
    """Return the report as Markdown.

    Args:
        runs: what each run learnt of the raters.
        truth: the true reliabilities.
        accuracies: the share of pairs that each reward model orders rightly.
        pairs: how many pairs that is of.
        wins: the win rate of each policy with its standard error, if there are policies.
    """
    parts = ["# Raters"]
    for name, found in runs.items():
        parts += [f"## {in_markdown(name)}", ratings_table(found, truth), _anchor(found)]
    parts += ["## Reward models", f"Of {pairs:,} held-out pairs with different known rewards, in the right order:"]
    parts.append("\n".join(f"- {in_markdown(name)}: {share:.1%}" for name, share in accuracies.items()))
    if wins:
        parts += ["## Policies", "Win rate over the reference by the known reward:"]
        lines = [
            f"- {in_markdown(name)}: {rate:.1%}" + (f" ± {error:.1%}" if error else "")
            for name, (rate, error) in wins.items()
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _anchor(ratings: list[Rating]) -> str:
    """Return in words what tells the raters' reliabilities from their mirror image."""
    labels = sum(one.labels for one in ratings)
    right = sum(one.labels * one.reliability for one in ratings) / labels
    chosen = (
        "trusted raters choose between the two"
        if any(one.trusted for one in ratings)
        else "the prior, that raters are right, chooses between the two, so most labels are taken to be right"
    )
    warning = "" if right >= 0.5 else " Here most labels are taken to be wrong: check that with trusted raters."
    return (
        "The opposite of every reward, with each reliability C turned into 1 − C, explains the labels as well; "
        f"{chosen}. By these estimates, {right:.0%} of the labels are right.{warning}"
    )


def _facts(folder: str, name: str) -> dict[str, Any]:
    """Return what a stage wrote as JSON. Raises `DataError` if it cannot be read."""
    file = expanded(folder, CheckpointError) / name
    try:
        return dict(parse_json(file.read_text(encoding="utf-8-sig")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"cannot read {file}: {error}; give the folder of the stage that writes it") from None
