"""The report for people: a page of Markdown, and the plot of reward against divergence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from axon_core import in_markdown, printable
from axon_core.registry import new_figure

__all__ = ["draw_frontier", "page"]

_COLUMNS = {
    "reward": ("reward", "{:.4f}"),
    "win rate": ("win_rate", "{:.1%}"),
    "reward model's score": ("model_reward", "{:.4f}"),
    "win rate by it": ("model_win_rate", "{:.1%}"),
    "KL, nats": ("kl", "{:.3f}"),
    "tokens": ("length", "{:.1f}"),
    "cut off": ("unfinished", "{:.1%}"),
}


def page(facts: Mapping[str, Any]) -> str:
    """Return a report's contents as Markdown."""
    policies: Mapping[str, Mapping[str, float | None]] = facts["policies"]
    columns = {title: cell for title, cell in _COLUMNS.items() if policies["reference"][cell[0]] is not None}
    rows = [
        [in_markdown(name), *(_measured(values, *cell) for cell in columns.values())]
        for name, values in policies.items()
    ]
    parts = [
        "# Alignment",
        f"{facts['prompts']} held-out prompts, {facts['responses']} responses each; wins are over the reference. "
        "± is a standard error over prompts.",
        _table(["policy", *columns], rows),
    ]
    if budget := facts["budget"]:
        parts.append(_verdict(budget, policies))
    if accuracy := facts["reward_model"]:
        parts.append(
            f"Reward model: {accuracy['accuracy']:.1%} of the pairs of {accuracy['prompts']} held-out rankings in the "
            f"right order; the known reward itself has {accuracy['known_reward_accuracy']:.1%} of them, and "
            f"{accuracy['bayes_accuracy']:.1%} on average over the noise (Bayes)."
        )
    if target := next((p for p in facts["frontier"]["optimum"] if p["beta"] == facts["target_beta"]), None):
        parts.append(
            f"The optimum that the policies are trained towards, β = {target['beta']:g}: reward "
            f"{target['reward']:.4f} at {target['kl']:.3f} nats, {_estimated(facts)}."
        )
    names = list(policies)
    titles = [in_markdown(name) for name in names]
    samples = [[_cell(sample["prompt"]), *(_cell(sample[name]) for name in names)] for sample in facts["samples"]]
    parts += ["## Samples", _table(["prompt", *titles], samples)]
    return "\n\n".join(parts) + "\n"


def draw_frontier(facts: Mapping[str, Any], file: Path) -> None:
    """Draw reward against KL divergence of policies, best-of-n and optimum; without matplotlib, do nothing."""
    if (figure := new_figure(7, 5)) is None:
        return
    axes = figure.add_subplot(xlabel="KL from the reference, nats", ylabel="reward")
    frontier = facts["frontier"]
    base = facts["policies"]["reference"]
    how = _estimated(facts)
    labels = {"best_of_n": f"best of n ({how})", "optimum": f"optimum π* ({how})"}
    for name, points in frontier.items():
        if name == "exact" or not points:
            continue
        curve = [(0.0, base["reward"]), *((point["kl"], point["reward"]) for point in points)]
        style = "k--" if name == "optimum" else "o-"
        axes.plot(
            *zip(*sorted(curve), strict=True),
            style,
            markersize=3,
            linewidth=1,
            label=labels.get(name, name.replace("$", r"\$")),
        )
    if target := [p for p in frontier["optimum"] if p["beta"] == facts["target_beta"]]:
        label = f"π* that is trained towards, β = {facts['target_beta']:g}"
        axes.plot(target[0]["kl"], target[0]["reward"], "k*", markersize=10, label=label)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)


def _verdict(budget: Mapping[str, Any], policies: Mapping[str, Mapping[str, float | None]]) -> str:
    """Return in words which policies win often enough within the budget."""
    words = [
        f"{in_markdown(name)} {'reaches' if reached else 'does not reach'} it ({policies[name]['win_rate']:.1%} at "
        f"{policies[name]['kl']:.2f} nats)"
        for name, reached in budget["reached"].items()
    ]
    return (
        f"The recipe asks for a win rate of {budget['win_rate']:.0%} at a KL divergence of at most {budget['kl']:g} "
        f"nats a response. {'; '.join(words)}."
    )


def _measured(values: Mapping[str, float | None], field: str, form: str) -> str:
    """Return a number, and its standard error if it has one; what holds by definition has none."""
    error = values.get(f"{field}_error")
    return form.format(values[field]) + (f" ± {form.format(error)}" if error else "")


def _estimated(facts: Mapping[str, Any]) -> str:
    """Return in words how best-of-n and the optimum were found."""
    if facts["frontier"]["exact"]:
        return "exact"
    return f"of a sample of {facts['pool']}, which shows at most {math.log(facts['pool']):.2f} nats"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """Return a text as a cell of a table: on one line, its line breaks shown; backticks keep it from being HTML."""
    return "`" + printable(text.replace("\n", "⏎"), line=True).replace("|", "¦").replace("`", "'") + "`"
