"""The conformance kit: what every plugin's parts must satisfy, whoever wrote them.

A plugin's own tests run it over everything the plugin registers:

    from axon_core.testing import conformance

    test_conformance = conformance("my-plugin")

`axon check my-plugin` prints the same as a table, and `examine` looks at a class that is not registered yet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # this package is imported by every pytest run, through the plugin: torch waits until it is needed
    from axon_core.testing.kit import Case

__all__ = ["conformance", "examine"]


def conformance(distribution: str | None = None) -> Callable[[Case], None]:
    """Return a test that runs each check on each part of an installed distribution; None: on all that is installed.

    Assign it to a name that begins with `test`; the ids read `attention:mine:causal`.
    """
    import pytest

    @pytest.mark.conformance(distribution)
    def test(case: Case) -> None:
        if failure := case.failure():
            pytest.fail(str(failure), pytrace=False)

    return test


def examine(cls: type[Any], **options: Any) -> dict[str, str]:
    """Run every check of its interface on a class, registered or not, and return what is wrong by the check's name.

    `options` are fields of its `Config`, or, for a trainer, the tables of a recipe (`model`, `data`, `trainer`); left
    out, its `examples` are used.

    Raises:
        ContractError: the class implements none of the interfaces.
    """
    from axon_core.testing.suites import cases_of

    failures: dict[str, str] = {}
    for case in cases_of(cls, options):
        if failure := case.failure():
            failures.setdefault(case.check.name, str(failure))
    return failures
