"""A broken part is caught by the check that is meant for its mistake."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from axon_core.testing import examine

Row = tuple[type[Any], str, Set[str]]
"""A broken class, the check that is meant for its mistake, and others that may notice it too."""


def assert_caught(broken: type[Any], caught_by: str, also: Set[str]) -> None:
    """Check that the kit finds the mistake by the check `caught_by`, and that no check fails but those `also`."""
    failures = examine(broken)
    assert caught_by in failures, failures
    assert broken.__name__ in failures[caught_by]
    assert failures.keys() - {caught_by} <= also, failures
