"""A page per algorithm of axon-lab: its numbered steps, each beside the lines of source that do it."""

from __future__ import annotations

import html
import inspect
import re
from collections.abc import Sequence
from pathlib import Path

from axon_lab.pseudocode import (
    NumberedStep,
    PseudocodeAlgorithm,
    SourceSpan,
    find_span,
    load_algorithms,
    transcriptions,
)

_ABOUT = """\
The algorithms that make a Llama, in the notation of *Formal Algorithms for Transformers*
([arXiv 2207.09238](https://arxiv.org/abs/2207.09238)): a matrix holds one token a column, `W[:, v]` is a column,
[*n*] stands for 1, …, *n*, and what is learned stands behind the bar of a signature. Each page has the steps on the
left, and on the right the lines of Axon's source that do them. `axon reproduce lab` checks that the lines are there,
and that every algorithm, transcribed line by line into plain float64, gives what the registered part gives.
"""


def pages() -> dict[str, str]:
    """Return the pages of the algorithms, and their index, by path."""
    algorithms = load_algorithms()
    made = {f"pseudocode/{algorithm.id}.md": page(algorithm) for algorithm in algorithms}
    rows = [f"| [{a.title}]({a.id}.md) | {_cell(a.call)} | {_linked(a.source)} | `{a.part}` |" for a in algorithms]
    table = ["| algorithm | | stated in | part |", "|---|---|---|---|", *rows]
    tree = ["```{toctree}", ":hidden:", "", *(a.id for a in algorithms), "```", ""]
    made["pseudocode/index.md"] = "\n".join(["# Pseudocode beside code", "", _ABOUT, *table, "", *tree])
    return made


def page(algorithm: PseudocodeAlgorithm) -> str:
    """Return the page of an algorithm as MyST Markdown.

    Raises:
        DataError: a step names a line that is not there.
    """
    spans = [[find_span(anchor) for anchor in step.code] for step in algorithm.step]
    shown = dict.fromkeys(span.anchor.at for found in spans for span in found)
    labels = {at: f"{algorithm.id}-source-{number}" for number, at in enumerate(shown, 1)}
    steps = [
        line
        for number, (step, found) in enumerate(zip(algorithm.step, spans, strict=True), 1)
        for line in _step(number, step, found, labels)
    ]
    everywhere = [span for found in spans for span in found]
    source = [line for at, label in labels.items() for line in _source(at, label, everywhere)]
    transcription = inspect.getsource(getattr(transcriptions, algorithm.transcription)).rstrip()
    return "\n".join(
        [
            f"# {algorithm.title}",
            "",
            *_raw(f'<p class="algorithm-call">{typeset(algorithm.call)}</p>', f"<p>{typeset(algorithm.about)}</p>"),
            f"Stated in {_linked(algorithm.source)}. The registered part is `{algorithm.part}`.",
            "",
            *_raw(_facts(algorithm)),
            "## Steps",
            "",
            "::::{container} steps",
            *steps,
            "::::",
            "",
            "## Source",
            "",
            "The definitions that the lines stand in; the lines themselves are marked.",
            "",
            "::::{container} algorithm-source",
            *source,
            "::::",
            "",
            "## Transcription",
            "",
            "The steps in NumPy's float64, with their numbers; it gives what the part gives, to 10⁻¹².",
            "",
            ":::{container} algorithm-source",
            "```{code-block} python",
            transcription,
            "```",
            ":::",
            "",
        ]
    )


def typeset(text: str) -> str:
    """Return HTML of a line of an algorithm: subscripts, superscripts and, in backticks, code."""
    parts = re.split(r"`([^`]*)`", text)
    return "".join(f"<code>{html.escape(p)}</code>" if i % 2 else _scripts(html.escape(p)) for i, p in enumerate(parts))


def _scripts(text: str) -> str:
    """`W^{h}_{q}` as in print; within a script, and after one letter, `_x` is a subscript too."""
    tags = {"_": "sub", "^": "sup"}
    word = r"(?<=\w)_(\w+)"

    def script(match: re.Match[str]) -> str:
        inner = re.sub(word, r"<sub>\1</sub>", match[2])
        return f"<{tags[match[1]]}>{inner}</{tags[match[1]]}>"

    return re.sub(word, r"<sub>\1</sub>", re.sub(r"([_^])\{([^{}]*)\}", script, text))


def _facts(algorithm: PseudocodeAlgorithm) -> str:
    rows = [
        *(("Input", text) for text in algorithm.inputs),
        ("Output", algorithm.output),
        *(("Parameters", text) for text in algorithm.parameters),
    ]
    cells = (
        f"<dt>{'' if i and rows[i - 1][0] == name else name}</dt><dd>{typeset(text)}</dd>"
        for i, (name, text) in enumerate(rows)
    )
    return f'<dl class="algorithm-facts">{"".join(cells)}</dl>'


def _step(number: int, step: NumberedStep, found: Sequence[SourceSpan], labels: dict[str, str]) -> list[str]:
    """One row: the numbered line, and the source beside it."""
    text = f'<p class="step-line"><span class="step-number">{number}</span>'
    text += f'<span style="padding-left: {1.5 * step.indent:g}em">{typeset(step.text)}</span></p>'
    note = f'<p class="step-note">{typeset(step.note)}</p>' if step.note else ""
    lines = [":::{container} step", *_raw(text + note), ":::", ":::{container} step"]
    for span in found:
        lines += [f"[{_shown(span)}](#{labels[span.anchor.at]})", "", "```{code-block} python"]
        lines += [*_dedented(span), "```", ""]
    return [*lines, ":::"]


def _source(at: str, label: str, spans: Sequence[SourceSpan]) -> list[str]:
    """A definition with the lines that steps name marked."""
    own = [span for span in spans if span.anchor.at == at]
    definition = own[0].definition
    marked = sorted({n - definition.first + 1 for s in own for n in range(s.first, s.last + 1)})
    module, _, name = at.partition(":")
    return [
        f"({label})=",
        f"### `{name}`",
        "",
        f"`{_path(module, definition.file)}`",
        "",
        "```{code-block} python",
        f":lineno-start: {definition.first}",
        f":emphasize-lines: {','.join(map(str, marked))}",
        "",
        *inspect.cleandoc("\n" + "\n".join(definition.lines)).splitlines(),
        "```",
        "",
    ]


def _dedented(span: SourceSpan) -> list[str]:
    first = span.first - span.definition.first
    lines = span.definition.lines[first : first + span.last - span.first + 1]
    return inspect.cleandoc("\n" + "\n".join(lines)).splitlines()


def _shown(span: SourceSpan) -> str:
    module, _, name = span.anchor.at.partition(":")
    return f"`{name}`, {_path(module, span.definition.file)}, line {span.first}"


def _path(module: str, file: Path) -> str:
    """The path of a module's file from the folder that its package lies in."""
    return "/".join(file.parts[-len(module.split(".")) - (file.name == "__init__.py") :])


def _linked(source: str) -> str:
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", source)


def _raw(*lines: str) -> list[str]:
    return ["```{raw} html", *lines, "```", ""]


def _cell(text: str) -> str:
    return typeset(text).replace("|", "&#124;")  # a bar would end the cell
