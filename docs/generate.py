"""Make what the documentation is built from, `docs/_build/source`: the written pages, and those made of the code.

`--front` writes the generated parts of files in the repository instead: the table of papers in README.md, the picture
`docs/axon.svg`, and the lines that `docs/architecture.md` links to. With `--check` it changes nothing, and fails where
they are out of date.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS / "_ext"))

from axon_docs import claims, commands, lab, papers, picture, pseudocode, reference  # noqa: E402

BEGIN, END = "<!-- papers: written by docs/generate.py --front -->", "<!-- end of papers -->"


def pages() -> dict[str, str]:
    """Return the generated pages by their path, but for those that show figures."""
    made = {f"papers/{card.entry.distribution}.md": papers.page(card, ROOT) for card in papers.installed(ROOT)}
    made["papers/claims.md"] = claims.page(papers.installed(ROOT), claims.releases(DOCS / "claims"))
    made["papers/index.md"] = _index("Papers", papers.table(ROOT).replace("(plugins/", "("), made)
    api = {f"reference/{name}.md": text for name, text in reference.pages().items()}
    made |= api
    about = "Every public name of the core and of the plugins, from the docstrings."
    made["reference/index.md"] = _index("Reference", about, api)
    made["commands.md"] = commands.page()
    return made | pseudocode.pages() | lab.pages(ROOT)


def written() -> dict[str, str]:
    """Return the written pages by their path, with links that lead to pages of the documentation alone."""
    found = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)
    return {page.relative_to(DOCS).as_posix(): _within(page.read_text("utf-8"), page.parent) for page in found}


def write(out: Path) -> None:
    """Write the source of the documentation to `out` again."""
    from axon_docs import figures

    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for path, text in (written() | pages()).items():
        _write(out / path, text)
    for card in papers.installed(ROOT):
        for name, source in papers.pictures(card.entry.distribution, ROOT).items():
            shutil.copy(source, out / "papers" / name)
    lab.write_files(ROOT, out)
    for name, text in claims.badges(papers.installed(ROOT), claims.releases(DOCS / "claims")).items():
        _write(out / "papers" / name, text)
    shutil.copytree(DOCS / "pictures", out / "pictures")
    drawn = out / "figures"
    drawn.mkdir()
    figures.visibility(drawn / "visibility.svg")
    figures.schedules(drawn / "schedules.svg")
    _write(drawn / "axon.svg", picture.svg(ROOT))
    measured = figures.results(ROOT / "benchmarks" / "results", drawn)
    _write(out / "results.md", f"{written()['results.md']}\n## The files of benchmarks/results\n\n{measured}")


def front() -> dict[Path, str]:
    """Return the files of the front page as they should be."""
    readme = (ROOT / "README.md").read_text("utf-8")
    table = f"{BEGIN}\n{papers.table(ROOT)}\n{END}"
    made, count = re.subn(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: table, readme, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"README.md must hold {BEGIN} and {END} once")
    map_ = DOCS / "architecture.md"
    lines = located(map_.read_text("utf-8"), DOCS)
    return {ROOT / "README.md": made, DOCS / "axon.svg": picture.svg(ROOT), map_: lines}


def located(text: str, folder: Path) -> str:
    """Return a page of `folder` whose links to names, ``[`A.b`](../file.py#L1)``, have the line that defines the name.

    Raises:
        SystemExit: a file is not there, or defines no such name.
    """

    def link(match: re.Match[str]) -> str:
        name, path = match.groups()
        file = folder / path
        line = definitions(file).get(name) if file.is_file() else None
        if line is None:
            raise SystemExit(f"a link to `{name}` in {path}, which does not define it; correct the page")
        return f"[`{name}`]({path}#L{line})"

    return re.sub(r"\[`([\w.]+)`\]\((\S+\.py)#L\d+\)", link, text)


@cache
def definitions(file: Path) -> dict[str, int]:
    """Return the line at which a file defines each class, function and variable; `A.b` is defined in the class A."""
    found: dict[str, int] = {}

    def visit(nodes: list[ast.stmt], prefix: str) -> None:
        for node in nodes:
            match node:
                case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                    found.setdefault(f"{prefix}{name}", node.lineno)
                case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                    found.setdefault(f"{prefix}{name}", node.lineno)
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{prefix}{node.name}.")

    visit(ast.parse(file.read_text("utf-8")).body, "")
    return found


def _within(text: str, folder: Path) -> str:
    """Links of a page in `folder` that leave docs/: to a paper's README, they lead to its page; others become text."""

    def link(match: re.Match[str]) -> str:
        shown, target = match.groups()
        path = (folder / target.partition("#")[0]).resolve()
        if re.match(r"\w+:", target) or path.is_relative_to(DOCS):
            return match[0]
        if path.parent.parent == ROOT / "plugins" and path.name == "README.md":
            return f"[{shown}]({os.path.relpath(DOCS / 'papers' / path.parent.name, folder)}.md)"
        return shown

    return re.sub(r"(?<!!)\[([^\[\]]*)\]\(([^)\s]+)\)", link, text)


def _index(title: str, about: str, found: dict[str, str]) -> str:
    entries = [Path(path).name.removesuffix(".md") for path in found]
    about = re.sub(r"\]\((axon-[a-z]+)\)", r"](\1.md)", about)
    return "\n".join([f"# {title}", "", about, "", "```{toctree}", ":maxdepth: 1", "", *entries, "```", ""])


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def main() -> int:
    """Make the pages; 1 where `--check` finds the front page out of date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--front", action="store_true", help="write the generated parts of the front page")
    parser.add_argument("--check", action="store_true", help="with --front: change nothing, fail where out of date")
    options = parser.parse_args()
    if not options.front:
        write(DOCS / "_build" / "source")
        return 0
    stale = {path: text for path, text in front().items() if not path.exists() or path.read_text("utf-8") != text}
    for path, text in stale.items():
        if options.check:
            print(f"{path.relative_to(ROOT)} is out of date: python docs/generate.py --front", file=sys.stderr)
        else:
            _write(path, text)
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
