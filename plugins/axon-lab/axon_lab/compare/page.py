"""The page of a comparison: one HTML file that needs no network and no script, with the answers first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.resources import files

from axon_lab.compare.conclusions import Difference
from axon_lab.compare.drawing import (
    DifferenceScale,
    Line,
    axis_svg,
    curves_svg,
    interval_span,
    interval_svg,
    mean_curve,
    swatch_svg,
    value_range,
)
from axon_lab.compare.heat_map import heat_maps
from axon_lab.compare.results import CellResult, RecipeComparison
from axon_lab.compare.tables import comparison_table
from axon_lab.compare.wording import Words, as_html, p_words, plural

__all__ = ["comparison_page"]

_LINES = 8  # curves that one plot can hold
_CLAIMED = ("better", "worse")


def comparison_page(words: Words) -> str:
    """Return the whole page as HTML: answers, what is missing, differences, table, heat map, curves and design."""
    comparison = words.comparison
    title = f"{comparison.recipe}: {', '.join(axis.path for axis in comparison.axes if len(axis.values) > 1)} compared"
    sections = [
        _answers(words),
        _problems(words),
        _section("Differences", _forest(words)),
        _section("All cells", _table(words)),
        _section("Means", heat_maps(words)),
        _section("Over the training", _curves(comparison)),
        _section("Design", _design(comparison)),
    ]
    style = (files(__package__ or "") / "page.css").read_text(encoding="utf-8-sig")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{as_html(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{as_html(title)}</h1>\n{''.join(sections)}</main>\n</body>\n</html>\n"
    )


def _section(title: str, inside: str) -> str:
    return f"<section>\n<h2>{as_html(title)}</h2>\n{inside}\n</section>\n" if inside else ""


def _list(items: Iterable[str], kind: str = "") -> str:
    return f"<ul{kind}>{''.join(items)}</ul>"


def _answers(words: Words) -> str:
    parts = [f'<p class="soft">{as_html(words.measured())}</p>', f'<p class="headline">{as_html(words.headline())}</p>']
    for title, differences in words.groups():
        claimed = [each for each in differences if each.verdict in _CLAIMED]
        others = [each for each in differences if each.verdict not in _CLAIMED]
        parts.append(f"<h3>{as_html(title)}</h3>" if title else "")
        parts.append(_list(_answer(words, each) for each in claimed) if claimed else "")
        if len(others) > _LINES:
            named = _list(_answer(words, each) for each in others)
            parts.append(
                f"<details><summary>No difference can be claimed for {len(others)} of {len(differences)}</summary>"
                f"{named}</details>"
            )
        elif others:
            parts.append(_list(_answer(words, each) for each in others))
    parts += [f'<p class="soft">{as_html(note)}</p>' for note in words.notes()]
    return f"<section>\n{''.join(parts)}\n</section>\n"


def _answer(words: Words, difference: Difference) -> str:
    kind = ' class="claim"' if difference.verdict in _CLAIMED else ""
    name, verdict = as_html(words.name(difference)), as_html(words.verdict(difference))
    return f'<li{kind}>{name}: <span class="evidence">{as_html(words.evidence(difference))}:</span> {verdict}.</li>'


def _problems(words: Words) -> str:
    unfinished = [f"<li>{as_html(each)}</li>" for each in words.unfinished()]
    left_out = [f"<li>{as_html(each)}</li>" for each in words.left_out()]
    return _section("Not finished", _list(unfinished, ' class="problems"') if unfinished else "") + _section(
        "Left out, does not fit the recipe", _list(left_out) if left_out else ""
    )


def _forest(words: Words) -> str:
    differences = [each for each in words.conclusions.differences if each.mean is not None]
    if not differences:
        return ""
    comparison = words.comparison
    known = [(each.mean, each.interval or (each.mean, each.mean)) for each in differences if each.mean is not None]
    span = interval_span([(low, mean, high) for mean, (low, high) in known])
    sides = ("lower: worse", "higher: better") if comparison.higher_is_better else ("lower: better", "higher: worse")
    unit = as_html(comparison.unit)
    head = (
        f'<thead><tr><th class="name">difference</th><th class="plot">{axis_svg(span, *sides)}</th>'
        f"<th>mean ± se, {unit}</th><th>95 % interval, {unit}</th><th>p</th><th>p, Holm</th><th>pairs</th></tr></thead>"
    )
    rows: list[str] = []
    for title, group in words.groups():
        rows.append(f'<tr class="group"><th colspan="7">{as_html(title)}</th></tr>' if title else "")
        short = bool(title) and group[0].axis is None
        rows += [_forest_row(words, span, each, each.mean, short=short) for each in group if each.mean is not None]
    methods = {each.method for each in differences}
    how = "Student's t interval" if "t" in methods or not methods - {None} else "the BCa bootstrap's"
    how = "Student's t interval, from 10 pairs the BCa bootstrap's" if methods >= {"t", "bootstrap"} else how
    note = (
        "Runs with the same seed are paired. Each line is an interval of 95 % for one difference alone "
        f"({how}); a filled mark is a claim: p of the paired t test, corrected by Holm's method for "
        f"{plural(sum(each.p is not None for each in differences), 'difference')}, is below 0.05."
    )
    if hidden := len(words.conclusions.differences) - len(differences):
        note += f" {plural(hidden, 'difference')} without a pair of finished runs: not shown here."
    table = f'<div class="box"><table class="forest">{head}<tbody>{"".join(rows)}</tbody></table></div>'
    return f'{table}<p class="soft">{as_html(note)}</p>'


def _forest_row(words: Words, span: DifferenceScale, difference: Difference, value: float, *, short: bool) -> str:
    """Return a row of the forest plot; a `short` one does not name the reference, which its title does."""
    name = as_html(words.comparison.name(difference.values) if short else words.name(difference))
    pairs = as_html(words.pairs(difference))
    claimed = difference.verdict in _CLAIMED
    drawn = interval_svg(span, value, difference.interval, claimed)
    mean = words.with_error(value, difference.standard_error, signed=True)
    ps = [
        "–" if p is None else p_words(p).removeprefix("p ").removeprefix("= ")
        for p in (difference.p, difference.p_holm)
    ]
    weight = "b" if claimed else "span"
    cells = "".join(f"<td>{as_html(text)}</td>" for text in (mean, words.interval(difference), *ps, pairs))
    return f'<tr><td class="name"><{weight}>{name}</{weight}></td><td class="plot">{drawn}</td>{cells}</tr>'


def _table(words: Words) -> str:
    titles, rows = comparison_table(words)
    names = len(words.comparison.axes)

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = [' class="name"' if i < names or i == names + 1 else "" for i in range(len(cells))]
        return "".join(f"<{tag}{kind}>{as_html(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    note = "± is the standard error over seeds; rates are means over runs, memory is the largest of a cell's processes."
    head = f"<thead><tr>{line(titles, 'th')}</tr></thead>"
    return f'<div class="box"><table>{head}<tbody>{body}</tbody></table></div><p class="soft">{note}</p>'


def _curves(comparison: RecipeComparison) -> str:
    """Return the curves: in one plot if it can hold them, or in one for each value of the first axis."""
    by_seconds = comparison.budget is not None and comparison.budget.unit == "seconds"
    cells = [cell for cell in comparison.cells if any(run.curve for run in cell.runs)]
    if not cells:
        return ""
    split = len(cells) > _LINES and sum(len(axis.values) > 1 for axis in comparison.axes) > 1
    place = next((i for i, axis in enumerate(comparison.axes) if len(axis.values) > 1), 0) if split else None
    names = [comparison.name([value for i, value in enumerate(cell.values) if i != place]) for cell in cells]
    styles = {name: style for style, name in enumerate(dict.fromkeys(names))}
    panels: dict[str, list[Line]] = {}
    for cell, name in zip(cells, names, strict=True):
        panel = "" if place is None else f"{comparison.axes[place].path} = {cell.values[place]}"
        panels.setdefault(panel, []).append(_line(cell, name, styles[name], by_seconds))
    lines = [line for panel in panels.values() for line in panel]
    last = max(x for line in lines for run in line.runs for x, _ in run) or 1.0
    shown = value_range(lines, last)
    if shown is None:
        return ""
    titles = ("seconds of training" if by_seconds else "step", f"{comparison.metric}, {comparison.unit}")
    plots = "".join(
        f"<figure>{f'<figcaption>{as_html(panel)}</figcaption>' if panel else ''}"
        f"{curves_svg(inside, *titles, last, shown)}</figure>"
        for panel, inside in panels.items()
    )
    legend = _list(
        (f"<li>{swatch_svg(style)}{as_html(name)}</li>" for name, style in styles.items()), ' class="legend"'
    )
    note = "Thin: each seed, also of runs that failed. Thick: the mean of the finished ones. "
    note += (
        "What lies above the plot is cut off."
        if any(y > shown[1] for line in lines for run in line.runs for _, y in run)
        else ""
    )
    kind = "plots one" if len(panels) == 1 else "plots"
    return f'{legend}<div class="{kind}">{plots}</div><p class="soft">{note}</p>'


def _line(cell: CellResult, name: str, style: int, by_seconds: bool) -> Line:
    curves = [
        (run.status, [(point.seconds if by_seconds else float(point.step), point.value) for point in run.curve])
        for run in cell.runs
        if run.curve
    ]
    finished = [points for status, points in curves if status == "done"]
    return Line(name, style, tuple(points for _, points in curves), mean_curve(finished))


def _design(comparison: RecipeComparison) -> str:
    budget = comparison.budget
    facts = [
        ("recipe", comparison.recipe),
        *((f"varied: {axis.path}", ", ".join(axis.values)) for axis in comparison.axes),
        ("set for all", ", ".join(comparison.overrides) or "nothing"),
        ("seeds", ", ".join(map(str, comparison.seeds))),
        ("budget of a run", f"{budget.amount:,g} {budget.unit}" if budget else "the recipe's own steps"),
        ("hardware", comparison.hardware or "not recorded"),
        ("versions", ", ".join(f"{name} {version}" for name, version in comparison.versions.items()) or "not recorded"),
    ]
    return f"<dl>{''.join(f'<dt>{as_html(name)}</dt><dd>{as_html(fact)}</dd>' for name, fact in facts)}</dl>"
