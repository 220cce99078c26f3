"""The board as a page: Markdown, with the curve of each record over time as a picture in SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date
from html import escape
from pathlib import Path

from axon_core import in_markdown, printable
from axon_core.checkpoint import write_text, writing
from axon_lab.board.folders import EntryFile, TaskFolder

__all__ = ["board_page", "record_curve", "write_board_page"]

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 260, 64, 16, 16, 36


def write_board_page(tasks: Sequence[TaskFolder], folder: Path) -> Path:
    """Write `board.md` and a curve `board-<task>.svg` for each task; return the page's path.

    Raises:
        CheckpointError: the folder cannot be written to.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        if task.entries:
            write_text(folder / f"board-{task.name}.svg", record_curve(task))
    write_text(page := folder / "board.md", board_page(tasks))
    return page


def board_page(tasks: Sequence[TaskFolder]) -> str:
    """Return the page in Markdown; it shows the pictures `board-<task>.svg` beside it."""
    parts = [
        "# Board",
        "Fixed tasks that fit two cores, and the recipes that hold their records. A recipe is chosen on a validation "
        "part cut from the training part; the held-out part is evaluated once per entry. `axon board check TASK` runs "
        "an entry again. Hollow dots are entries with a remark, such as one chosen on the held-out part.",
    ]
    for task in tasks:
        parts += _section(task)
    return "\n\n".join(parts) + "\n"


def _section(folder: TaskFolder) -> list[str]:
    task = folder.task
    limits = [
        *([f"at most {task.parameters:,} parameters"] if task.parameters else []),
        *([f"{task.seconds:,.0f} seconds on {task.cores} cores"] if task.seconds else []),
    ]
    direction = "higher" if task.higher_is_better else "lower"
    facts = ", ".join([f"Measured: {task.metric}, in {task.unit}, {direction} is better", *limits])
    parts = [f"## {in_markdown(task.title)}", in_markdown(task.summary), f"{in_markdown(facts)}."]
    others = [
        f"- To compare with: {in_markdown(f'{one.title}, {one.value:g}. {one.source}')}." for one in task.reference
    ]
    if not folder.entries:
        return [*parts, "It has no entry yet.", *(["\n".join(others)] if others else [])]
    best = {one.name for one in folder.history}
    head = "| entry | date | mean | seeds | seconds | chosen on |\n|---|---|---|---|---|---|"
    rows = [_row(one, one.name in best) for one in folder.entries]
    curve = f"![The record over time](board-{folder.name}.svg)"
    words = [_described(one) for one in folder.entries]
    return [*parts, curve, "\n".join([head, *rows]), "\n".join([*words, *others])]


def _row(one: EntryFile, record: bool) -> str:
    entry, name = one.entry, in_markdown(one.name)
    choice = entry.selection
    candidates = "" if choice.candidates is None else f", {choice.candidates} candidates"
    chosen = "nothing" if choice.part == "none" else f"{choice.part}{candidates}"
    mean = f"{entry.mean:.4f}".rstrip("0")
    cells = [f"**{name}**" if record else name, entry.date, mean, entry.figures, f"{entry.seconds:,.0f}", chosen]
    return f"| {' | '.join(cells)} |"


def _described(one: EntryFile) -> str:
    """Return what an entry changed, how it was chosen, and what is to be said against it."""
    entry = one.entry
    remarks = f" Remark: {'; '.join(entry.remarks)}." if entry.remarks else ""
    words = f"{one.name}: {entry.changed} How it was chosen: {entry.selection.how}{remarks}"
    return f"- {in_markdown(words)} {in_markdown(entry.hardware)}, commit {in_markdown(entry.commit)}."


def record_curve(folder: TaskFolder) -> str:
    """Return the record over time as SVG: a dot for each entry, a line for the standing record, dashes for references.

    Records that were chosen on the held-out part, or that nobody knows the choice of, are hollow dots.
    """
    task = folder.task
    days = [date.fromisoformat(one.entry.date).toordinal() for one in folder.entries]
    figures = [one.entry.mean for one in folder.entries] + [reference.value for reference in task.reference]
    first, last = min(days), max(max(days), min(days) + 1)
    low, high = min(figures), max(figures)
    room = 0.1 * (high - low) or 0.1 * abs(high) or 1.0
    low, high = low - room, high + room

    def x(day: float) -> float:
        return round(_LEFT + 12 + (_WIDTH - _LEFT - _RIGHT - 24) * (day - first) / (last - first), 1)

    def y(figure: float) -> float:
        return round(_TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - figure) / (high - low), 1)

    drawn: list[str] = []
    for reference in task.reference:
        at = y(reference.value)
        drawn.append(f'<path d="M{_LEFT} {at}H{_WIDTH - _RIGHT}" stroke="#888" stroke-dasharray="4 4"/>')
        drawn.append(_text(_WIDTH - _RIGHT, at - 5, f"{reference.title}: {reference.value:g}", "end"))
    drawn.append(f'<path d="{_steps(folder, x, y)}" fill="none" stroke="#2563eb" stroke-width="2"/>')
    for one, day in zip(folder.entries, days, strict=True):
        fill = "white" if one.entry.remarks else "#2563eb"
        title = escape(printable(f"{one.name}: {one.entry.mean:.4f}, {one.entry.date}", line=True))
        circle = (
            f'<circle cx="{x(day)}" cy="{y(one.entry.mean)}" r="5" fill="{fill}" stroke="#2563eb" stroke-width="2">'
        )
        drawn.append(f"{circle}<title>{title}</title></circle>")
    for figure in sorted({min(figures), max(figures)}):
        drawn.append(_text(_LEFT - 8, y(figure) + 4, f"{figure:.5g}", "end"))
    for day, anchor in ((first, "start"), *([(last, "end")] if max(days) > first else [])):
        drawn.append(_text(x(day), _HEIGHT - 12, date.fromordinal(day).isoformat(), anchor))
    axes = f'<path d="M{_LEFT} {_TOP}V{_HEIGHT - _BOTTOM}H{_WIDTH - _RIGHT}" fill="none" stroke="#888"/>'
    label = escape(printable(f"{task.title}: the record over time, {task.unit}", line=True), quote=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}" '
        f'font-family="sans-serif" font-size="12" fill="#555">\n{axes}\n' + "\n".join(drawn) + "\n</svg>\n"
    )


def _steps(folder: TaskFolder, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    """Return the path of the standing record: level until the next record, then straight to it."""
    path = ""
    for one in folder.history:
        at = x(date.fromisoformat(one.entry.date).toordinal())
        path += f"H{at}V{y(one.entry.mean)}" if path else f"M{at} {y(one.entry.mean)}"
    return f"{path}H{_WIDTH - _RIGHT}"


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(printable(words, line=True))}</text>'
