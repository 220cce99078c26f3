"""`axon pseudocode`."""

from __future__ import annotations

import re
from typing import Any

import click

from axon_core import UsageError
from axon_core.cli import echo, json_option, print_json
from axon_lab.pseudocode import PseudocodeAlgorithm, find_span, load_algorithms


@click.command("pseudocode")
@click.argument("name", required=False)
@json_option
def command(name: str | None, as_json: bool) -> None:
    """Show an algorithm step by step with the source lines that do it; without NAME, list the algorithms."""
    algorithms = load_algorithms()
    if name is None:
        if as_json:
            print_json([{"name": a.id, "title": a.title, "source": a.source, "part": a.part} for a in algorithms])
            return
        width = max(len(a.id) for a in algorithms)
        for a in algorithms:
            echo(f"{a.id:<{width}}  {_plain(a.call)}")
        return
    algorithm = next((a for a in algorithms if a.id == name), None)
    if algorithm is None:
        raise UsageError(f"NAME must be one of {', '.join(a.id for a in algorithms)}; got {name!r}")
    steps = _steps(algorithm)
    if as_json:
        print_json({"name": name, "call": algorithm.call, "source": algorithm.source, "steps": steps})
        return
    echo(f"{_plain(algorithm.call)}    {algorithm.source}")
    for number, (step, shown) in enumerate(zip(algorithm.step, steps, strict=True), 1):
        echo(f"\n{number:>2}  {'    ' * step.indent}{_plain(step.text)}")
        for piece in shown["source"]:
            echo(f"      {piece['file']}:{piece['line']}  in {piece['definition']}")
            echo("\n".join(f"        {line}" for line in piece["code"].splitlines()))


def _steps(algorithm: PseudocodeAlgorithm) -> list[dict[str, Any]]:
    """Each step's text, and the file, line, definition and text of every piece of its source."""
    found: list[dict[str, Any]] = []
    for step in algorithm.step:
        pieces: list[dict[str, Any]] = []
        for anchor in step.code:
            span = find_span(anchor)
            definition = anchor.at.partition(":")[2]
            place = {"file": str(span.definition.file), "line": span.first, "definition": definition}
            pieces.append(place | {"code": anchor.lines})
        found.append({"text": step.text, "source": pieces})
    return found


def _plain(text: str) -> str:
    """The text of a step for a terminal: `W_{q}` as W_q."""
    return re.sub(r"([_^])\{([^{} ]*)\}", r"\1\2", text)
