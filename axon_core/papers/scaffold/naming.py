"""What a plugin may be called, and what its class is called after it."""

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
"""What a new plugin can bring."""

_LONGEST = 32
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def check_name(name: str, group: str) -> None:
    """Check that a new plugin with a part in `group` may be called `name`.

    Raises:
        UsageError: the name breaks a rule, or is taken by Python, a kind of part or another plugin.
    """
    if not _NAME.fullmatch(name) or name.startswith("axon-"):
        words = re.findall(r"[a-z0-9]+", re.sub(r"^axon[-_ ]", "", name.lower()))
        better = "-".join(words).lstrip("0123456789-")
        hint = f"choose another, such as {better!r}" if better else "choose another"
        raise UsageError(
            "a plugin's name consists of lower-case letters, digits and single hyphens, begins with a letter and "
            f"leaves out the prefix axon-, got {name!r}; {hint}"
        )
    if len(name) > _LONGEST:
        raise UsageError(f"a plugin's name has at most {_LONGEST} characters, got {len(name)}; choose a shorter one")
    if reason := _taken(name, group):
        raise UsageError(f"a plugin needs a name of its own, but {name!r} {reason}; choose another")


def class_name(name: str, suffix: str) -> str:
    """Return what a plugin's class is called: `sliding-window` and `Attention` give `SlidingWindowAttention`."""
    words = "".join(word.capitalize() for word in name.split("-"))
    return words if words.lower().endswith(suffix.lower()) else words + suffix


def _taken(name: str, group: str) -> str | None:
    """Say what the name is already, or return None."""
    key, distribution = name.replace("-", "_"), f"axon-{name}"
    if keyword.iskeyword(key) or keyword.issoftkeyword(key):
        return "is a keyword of Python"
    if key in sys.stdlib_module_names:
        return "is a module of Python's standard library"
    if name in (*KINDS, "core"):
        return "says what it is for, not which paper it is"
    if known := next((paper for paper in known_papers() if paper.distribution == distribution), None):
        return f"is the plugin of {known.title!r} (arXiv {known.arxiv})"
    entries = [entry for found in discover().groups.values() for entry in found]
    for entry in entries:
        if entry.distribution == distribution:
            return f"is the plugin {entry.source}, which is installed"
        if (entry.group, entry.key.lower()) in {(group, key), ("paper", name)}:
            return f"is the {entry.group.replace('_', ' ')} {entry.key!r} of {entry.source}, which is installed"
    return f"is taken: the module axon_{key} can be imported" if find_spec(f"axon_{key}") else None
