"""The files of a new plugin, from the templates beside this module.

The templates form layers: files of every plugin, of each kind, and of a standalone project. If several layers have a
file of the same name, their texts are concatenated.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from importlib import metadata
from pathlib import Path
from string import Template
from typing import Any

from axon_core.errors import UsageError
from axon_core.json_text import to_json
from axon_core.papers.scaffold.naming import KINDS, check_name, class_name
from axon_core.registry.discovery import discover

__all__ = ["Project", "render"]

_TEMPLATES = Path(__file__).with_name("templates")
_ARXIV = re.compile(r"([a-z]+(-[a-z]+)*(\.[A-Z]{2})?/)?(?P<year>\d{2})(0[1-9]|1[0-2])(?(1)\d{3}|\.\d{4,5})")
_FIRST_PARTY_IMPORTS = re.compile(r"(?:^from axon_.*\n)+", re.MULTILINE)


@dataclass(frozen=True)
class Project:
    """A plugin to create.

    Raises:
        UsageError: there is no such kind, the name is not allowed or is taken, or the title or arXiv id is malformed.
    """

    name: str
    """The short name: `sliding-window` makes the distribution `axon-sliding-window` and the key `sliding_window`."""
    kind: str
    """The kind of its part, one of `KINDS`."""
    title: str | None = None
    """The paper's title; by default made from the name."""
    arxiv: str | None = None
    """The paper's arXiv id; by default zeros for the author to replace."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(
                f"a plugin's kind must be one of {', '.join(KINDS)}, got {self.kind!r}; choose one of them"
            )
        check_name(self.name, self._facts["group"])
        if self.title is not None and not (self.title.strip() and self.title.isprintable()):
            raise UsageError(f"a title must be one line of text, got {self.title!r}; correct it or leave out --title")
        if self.arxiv is not None and not _exists(self.arxiv):
            raise UsageError(
                "an arXiv id must be year, month and number (four digits until 2014, five since) without a version, as "
                f"in 2305.13245 or, until March 2007, math.GT/0309136; got {self.arxiv!r}; correct it or leave out "
                "--arxiv"
            )

    @property
    def distribution(self) -> str:
        """Its name for pip."""
        return f"axon-{self.name}"

    @property
    def train(self) -> str:
        """The command that trains a small model with it."""
        return Template(self._facts["train"]).substitute(name=self.name, key=self._key)

    @property
    def needs(self) -> str | None:
        """The plugin that the command `train` needs in addition, or None if it is installed."""
        installed = {entry.distribution for entries in discover().groups.values() for entry in entries}
        return None if (needed := self._facts.get("tried_in")) in installed else needed

    @property
    def words(self) -> dict[str, str]:
        """The values of the templates' placeholders."""
        facts, package = self._facts, f"axon_{self._key}"
        title = self.title or self.name.replace("-", " ").title()
        cls = class_name(self.name, facts["suffix"])
        exports = [cls, *facts["exports"]]
        reference = f"[{title}](https://arxiv.org/abs/{self.arxiv})" if self.arxiv else f"*{title}*"
        source = f"arXiv {self.arxiv}" if self.arxiv else "the paper"
        requires = sorted(_requirement(line) for line in ("axon-core", *facts["requires"]))
        return {
            "name": self.name,
            "key": self._key,
            "package": package,
            "module": facts["module"],
            "group": facts["group"],
            "part": facts["group"].replace("_", " "),
            "cls": cls,
            "exports": ", ".join(exports),
            "exports_quoted": ", ".join(f'"{export}"' for export in exports),
            "dependencies": "\n".join(f'    "{line}",' for line in requires),
            "description": _quoted(f"{title} for Axon."),
            "title": _quoted(title),
            "reference": reference,
            "source": f"{source}; add the section and equation",
            "arxiv": self.arxiv or "0000.00000",
            "year": str(self._year),
            "train": self.train,
        }

    @property
    def _year(self) -> int:
        """The year of publication; arXiv began in 1991."""
        given = _ARXIV.fullmatch(self.arxiv) if self.arxiv else None
        if given is None:
            return date.today().year
        year = int(given["year"])
        return year + (1900 if given[1] and year > 90 else 2000)

    @property
    def _key(self) -> str:
        return self.name.replace("-", "_")

    @cached_property
    def _facts(self) -> dict[str, Any]:
        return tomllib.loads((_TEMPLATES / self.kind / "kind.toml").read_text(encoding="utf-8"))


def render(project: Project, *, standalone: bool) -> dict[str, str]:
    """Return the text of every file of the plugin, by its path within the project's folder.

    A `standalone` project has its own tool settings and workflow; in Axon's repository they are shared.
    """
    words = project.words
    stands_for = {"PACKAGE": words["package"], "KEY": words["key"], "NAME": project.name, "DOT": "."}
    files: dict[str, str] = {}
    for layer in ("common", project.kind, *(["standalone"] if standalone else [])):
        for template in sorted((_TEMPLATES / layer).rglob("*.txt")):
            path = template.relative_to(_TEMPLATES / layer).as_posix().removesuffix(".txt")
            for placeholder, value in stands_for.items():
                path = path.replace(placeholder, value)
            text = Template(template.read_text(encoding="utf-8")).substitute(words)
            files[path] = files.get(path, "") + text
    return {path: _sorted_imports(text) if path.endswith(".py") else text for path, text in files.items()}


def _sorted_imports(text: str) -> str:
    """Sort the imports of Axon's packages, because the position of the new package depends on its name."""
    return _FIRST_PARTY_IMPORTS.sub(lambda lines: "".join(sorted(lines[0].splitlines(keepends=True))), text)


def _exists(arxiv: str) -> bool:
    """Return whether arXiv has issued ids like this one: https://info.arxiv.org/help/arxiv_identifier.html."""
    if (given := _ARXIV.fullmatch(arxiv)) is None:
        return False
    if given[1]:
        return not 703 < int(arxiv.rpartition("/")[2][:4]) < 9100
    month, _, number = arxiv.partition(".")
    return 704 <= int(month) <= int(f"{date.today():%y%m}") and len(number) == (4 if int(month) < 1501 else 5)


def _requirement(line: str) -> str:
    """Add the range of compatible versions to the name of an Axon distribution, by the installed version."""
    if not line.startswith("axon-"):
        return line
    try:
        version = metadata.version(line)
    except metadata.PackageNotFoundError:
        return line
    if (found := re.match(r"(\d+)(?:\.(\d+))?", version)) is None:
        return line
    major, minor = int(found[1]), int(found[2] or 0)
    return f"{line}>={major}.{minor},<{f'{major + 1}' if major else f'0.{minor + 1}'}"


def _quoted(text: str) -> str:
    """Return a string in TOML, whose basic strings use JSON's escapes."""
    return to_json(text, ensure_ascii=False)
