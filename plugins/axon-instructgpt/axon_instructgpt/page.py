"""The report for people: a page of Markdown, and the plot of reward against divergence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["draw", "page"]

_COLUMNS = {
    "reward": ("reward", "{:.4f}"),
    "win rate": ("win_rate", "{:.1%}"),
    "reward model's score": ("model_reward", "{:.4f}"),
    "win rate by it": ("model_win_rate", "{:.1%}"),
    "KL, nats": ("kl", "{:.3f}"),
    "tokens": ("length", "{:.1f}"),
}


def page(facts: Mapping[str, Any]) -> str:
    """Return a report's contents as Markdown."""
    policies: Mapping[str, Mapping[str, float | None]] = facts["policies"]
    columns = {title: cell for title, cell in _COLUMNS.items() if policies["reference"][cell[0]] is not None}
    rows = [
        [name, *(form.format(values[field]) for field, form in columns.values())] for name, values in policies.items()
    ]
    parts = [
        "# Alignment",
        f"{facts['prompts']} held-out prompts, {facts['responses']} responses each; wins are over the reference.",
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
    names = list(policies)
    samples = [[_cell(sample["prompt"]), *(_cell(sample[name]) for name in names)] for sample in facts["samples"]]
    parts += ["## Samples", _table(["prompt", *names], samples)]
    return "\n\n".join(parts) + "\n"


def draw(facts: Mapping[str, Any], file: Path) -> None:
    """Draw reward against KL divergence of policies, best-of-n and optimum; without matplotlib, nothing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="KL from the reference, nats", ylabel="reward")
    frontier = facts["frontier"]
    base = facts["policies"]["reference"]
    how = "exact" if frontier["exact"] else "of a sample"
    labels = {"best_of_n": f"best of n ({how})", "optimum": f"optimum π* ({how})"}
    for name, points in frontier.items():
        if name == "exact" or not points:
            continue
        curve = [(0.0, base["reward"]), *((point["kl"], point["reward"]) for point in points)]
        style = "k--" if name == "optimum" else "o-"
        axes.plot(*zip(*sorted(curve), strict=True), style, markersize=3, linewidth=1, label=labels.get(name, name))
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)


def _verdict(budget: Mapping[str, Any], policies: Mapping[str, Mapping[str, float | None]]) -> str:
    """Return in words who wins within the budget."""
    words = [
        f"{name} {'wins' if wins else 'does not win'} within it ({policies[name]['win_rate']:.1%} at "
        f"{policies[name]['kl']:.2f} nats)"
        for name, wins in budget["wins"].items()
    ]
    return f"KL budget, stated in the recipe: {budget['kl']:g} nats a response. {'; '.join(words)}."


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """Return a text as a cell of a table: in one line, its line breaks shown."""
    return "`" + text.replace("|", "¦").replace("`", "'").replace("\n", "⏎") + "`"
