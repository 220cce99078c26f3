"""The rules for a plugin's name, and the name of its class."""

from __future__ import annotations

import keyword
import re
import sys
from importlib.util import find_spec

from axon_core.errors import UsageError
from axon_core.registry.discovery import discover
from axon_core.registry.suggest import known_papers

__all__ = ["KINDS", "check_name", "class_name"]

KINDS = ("attention", "rotary", "norm", "model", "trainer")
"""The kinds of part that a new plugin can add."""

_LONGEST = 32
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def check_name(name: str, group: str) -> None:
    """Check that `name` is allowed for a new plugin with a part in `group`.

    Raises:
        UsageError: the name breaks a rule, or is taken by Python, a kind of part or another plugin.
    """
    if not _NAME.fullmatch(name) or name.startswith("axon-"):
        words = re.findall(r"[a-z0-9]+", re.sub(r"^axon[-_ ]", "", name.lower()))
        better = "-".join(words).lstrip("0123456789-")
        hint = f"choose another, such as {better!r}" if better else "choose another"
        raise UsageError(
            "a plugin's name must consist of lower-case letters, digits and single hyphens, begin with a letter and "
            f"not have the prefix axon-, got {name!r}; {hint}"
        )
    if len(name) > _LONGEST:
        raise UsageError(
            f"a plugin's name must have at most {_LONGEST} characters, got {len(name)}; choose a shorter one"
        )
    if reason := _taken(name, group):
        raise UsageError(f"a plugin needs a unique name, but {name!r} {reason}; choose another")


def class_name(name: str, suffix: str) -> str:
    """Return the name of a plugin's class: `sliding-window` and `Attention` give `SlidingWindowAttention`."""
    words = "".join(word.capitalize() for word in name.split("-"))
    return words if words.lower().endswith(suffix.lower()) else words + suffix


def _taken(name: str, group: str) -> str | None:
    """Return the reason why the name is taken, or None."""
    key, distribution = name.replace("-", "_"), f"axon-{name}"
    if keyword.iskeyword(key) or keyword.issoftkeyword(key):
        return "is a Python keyword"
    if key in sys.stdlib_module_names:
        return "is a module of Python's standard library"
    if name in (*KINDS, "core"):
        return "names a part of Axon, not a paper"
    if known := next((paper for paper in known_papers() if paper.distribution == distribution), None):
        return f"is the plugin of {known.title!r} (arXiv {known.arxiv})"
    entries = [entry for found in discover().groups.values() for entry in found]
    for entry in entries:
        if entry.distribution == distribution:
            return f"is the plugin {entry.source}, which is installed"
        if (entry.group, entry.key.lower()) in {(group, key), ("paper", name)}:
            return f"is the {entry.group.replace('_', ' ')} {entry.key!r} of {entry.source}, which is installed"
    return f"is taken: the module axon_{key} can be imported" if find_spec(f"axon_{key}") else None
