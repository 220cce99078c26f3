"""Docstrings in Axon's style, as Markdown."""

from __future__ import annotations

import inspect
import re

_SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields):")
_MARKUP = re.compile(r"(?<!^)([_<\[\]|#]|(?<!\w)\*(?!\w)|(?<=\w)\*(?=\w))")  # *so* stays emphasis
_ITEM = re.compile(r"(?P<name>\S[^:]*): (?P<text>.*)")


def markdown(docstring: str) -> str:
    """Return a docstring as Markdown: examples as `pycon` blocks, `Args`, `Raises` and the like as lists."""
    out: list[str] = []
    lines = [*inspect.cleandoc(docstring).splitlines(), ""]
    while lines:
        line = lines.pop(0)
        if _SECTION.fullmatch(line):
            inner = _while(lines, lambda text: not text or text.startswith("    "))
            out += [f"**{line[:-1]}**", "", *_items(inspect.cleandoc("\n".join(inner)).splitlines()), ""]
        elif line.startswith(">>>"):
            out += ["```pycon", line, *_while(lines, bool), "```", ""]
        elif line.startswith("    ") and (not out or not out[-1]):
            block = [line, *_while(lines, lambda text: not text or text.startswith("    "))]
            out += ["```text", *inspect.cleandoc("\n".join(block)).splitlines(), "```", ""]
        else:
            out.append(_escaped(line))
    return "\n".join(out).strip()


def _while(lines: list[str], belongs) -> list[str]:
    taken = []
    while lines and belongs(lines[0]):
        taken.append(lines.pop(0))
    return taken


def _items(lines: list[str]) -> list[str]:
    return [
        f"- `{m['name']}`: {_escaped(m['text'])}" if (m := _ITEM.fullmatch(line)) else _escaped(line) for line in lines
    ]


def _escaped(line: str) -> str:
    """The line, with what Markdown would take for markup outside of code escaped."""
    pieces = re.split(r"(`[^`]*`)", line)
    return "".join(p if p.startswith("`") else _MARKUP.sub(r"\\\g<0>", p) for p in pieces)
