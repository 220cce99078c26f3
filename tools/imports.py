"""Print who imports whom: the levels of a package's modules, every cycle among them, and imports against the order.

`python tools/imports.py` looks at the core and at each plugin, and exits with 1 where there is a cycle, or where a
package of the core imports one that stands after it in `ORDER`. Imports under TYPE_CHECKING and inside functions count
like all others; the edge in `LAZY` is the one exception.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

LAZY = {("axon_core.interfaces.model", "axon_core.checkpoint.models")}
"""`Model.save` and `Model.load` call what writes and reads models, which knows the class `Model`."""

ORDER = (
    *("base", "registry", "interfaces", "registries", "checkpoint", "nn", "text", "generation", "alignment", "papers"),
    *("training", "testing", "cli", "__main__"),
)
"""The packages of the core: each knows itself and those before it. `base` are the modules beside them."""

Graph = dict[str, set[str]]


def modules(package: Path) -> dict[str, Path]:
    """Return the modules of the package in this folder, by dotted name."""
    found: dict[str, Path] = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path) -> Iterator[tuple[str, str]]:
    """Yield what a module imports anywhere in it: the module, and the name taken from it, if any."""
    inside = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = inside.split(".")[: len(inside.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*base, *filter(None, [node.module])])
            yield from ((source, alias.name) for alias in node.names)


def graph(package: Path) -> Graph:
    """Return the modules that each module of the package imports; an `__init__` counts only where a name is its own."""
    known = modules(package)
    edges: Graph = {name: set() for name in known}
    for name, path in known.items():
        for source, leaf in imported(name, path):
            target = f"{source}.{leaf}" if f"{source}.{leaf}" in known else source
            if target in known and target != name and (name, target) not in LAZY:
                edges[name].add(target)
    return edges


def cycles(edges: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Return the sets of nodes that reach each other, by Tarjan's algorithm; empty if there is no cycle."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in edges[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            component = [stack.pop()]
            while component[-1] != node:
                component.append(stack.pop())
            if len(component) > 1:
                found.append(sorted(component))

    for node in edges:
        if node not in index:
            visit(node)
    return found


def levels(edges: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Return the nodes of a graph without cycles by level: those of level n import only from the levels below n."""
    level: dict[str, int] = {}

    def height(node: str) -> int:
        if node not in level:
            level[node] = 1 + max((height(other) for other in edges[node]), default=-1)
        return level[node]

    for node in edges:
        height(node)
    return [sorted(node for node in level if level[node] == n) for n in range(max(level.values()) + 1)]


def room(name: str) -> str:
    """Return the package of the core that a module lies in, `base` for those of none.

    >>> room("axon_core.nn.attention"), room("axon_core.errors"), room("axon_core.registries")
    ('nn', 'base', 'registries')
    """
    first = name.split(".")[1]
    return first if first in ORDER else "base"


def against_order(edges: Mapping[str, Iterable[str]]) -> list[str]:
    """Return the imports of a later package of the core by an earlier one. The front, `axon_core`, is left out."""
    inner = {a: [b for b in others if "." in b] for a, others in edges.items() if "." in a}
    return [
        f"{a} imports {b}" for a, others in inner.items() for b in others if ORDER.index(room(b)) > ORDER.index(room(a))
    ]


def main() -> int:
    """Print levels and faults of the core and of every plugin; return how many faults there are."""
    root = Path(__file__).parents[1]
    total = 0
    for package in [root / "axon_core", *sorted(root.glob("plugins/*/axon_*"))]:
        edges = graph(package)
        rings = cycles(edges)
        total += len(rings)
        print(f"{package.name}: {len(edges)} modules, {len(rings)} cycles")
        for ring in rings:
            print(f"  cycle: {', '.join(ring)}")
        for fault in (faults := against_order(edges) if package.name == "axon_core" else []):
            print(f"  against the order: {fault}")
        total += len(faults)
        if not rings:
            for n, names in enumerate(levels(edges)):
                print(f"  {n}: {' '.join(name.removeprefix(f'{package.name}.') for name in names)}")
    return total


if __name__ == "__main__":
    sys.exit(min(main(), 1))
