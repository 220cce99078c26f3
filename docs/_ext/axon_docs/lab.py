"""Pages of the lab: the board of records, comparisons that were made, and the reading diary."""

from __future__ import annotations

from pathlib import Path

from axon_lab.board import board_page, read_tasks, record_curve
from axon_lab.compare.conclusions import conclude
from axon_lab.compare.report import comparison_text, read_comparison, write_report
from axon_lab.compare.wording import Words
from axon_lab.diary import diary_page, focus_page, read_diary

_COMPARISONS = """\
# Comparisons

Parts of different papers in one recipe, everything else equal, as `axon compare` made them. Each page has the answers;
the whole report, with its plots, is one file that needs no network.
"""


def pages(root: Path) -> dict[str, str]:
    """Return the lab's pages by path."""
    diary = read_diary(root / "diary")
    made = {"lab/board.md": board_page(read_tasks(root / "records")), "lab/diary.md": diary_page(diary)}
    focuses = {f"diary-{focus}": focus_page(diary, focus) for focus in diary.focuses}
    made["lab/diary.md"] += _tree(focuses)
    made |= {f"lab/{name}.md": text for name, text in focuses.items()}
    reports = {folder.name: _comparison(folder) for folder in _comparisons(root)}
    made["lab/comparisons.md"] = _COMPARISONS + _tree(reports, hidden=False)
    return made | {f"lab/{name}.md": text for name, text in reports.items()}


def write_files(root: Path, out: Path) -> None:
    """Write what the pages show: the curves of the records, and the whole report of each comparison."""
    for task in read_tasks(root / "records"):
        if task.entries:
            (out / "lab" / f"board-{task.name}.svg").write_text(record_curve(task), "utf-8")
    for folder in _comparisons(root):
        (out / "lab" / folder.name).mkdir(parents=True, exist_ok=True)
        write_report(read_comparison(folder), out / "lab" / folder.name)


def _comparisons(root: Path) -> list[Path]:
    return sorted(file.parent for file in (root / "docs" / "comparisons").glob("*/compare.json"))


def _comparison(folder: Path) -> str:
    comparison = read_comparison(folder)
    varied = ", ".join(f"`{axis.path}`" for axis in comparison.axes)
    return "\n".join(
        [
            f"# {folder.name.replace('-', ' ').capitalize()}",
            "",
            f"Recipe `{comparison.recipe}`, varied: {varied}; {len(comparison.seeds)} seeds. "
            f"{{download}}`The whole report <{folder.name}/compare.html>`.",
            "",
            "```text",
            comparison_text(Words(comparison, conclude(comparison))),
            "```",
            "",
        ]
    )


def _tree(found: dict[str, str], hidden: bool = True) -> str:
    """Return a table of contents of pages beside this one."""
    return "\n".join(["", "```{toctree}", *([":hidden:"] if hidden else [":maxdepth: 1"]), "", *found, "```", ""])
