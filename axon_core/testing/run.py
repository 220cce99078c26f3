"""The conformance kit: the properties that the parts of every plugin must have.

A plugin's tests run it on everything the plugin registers:

    from axon_core.testing import conformance

    test_conformance = conformance("my-plugin")

`axon check my-plugin` prints the same results as a table, and `examine` checks a class that is not registered yet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # every pytest run imports this package through the plugin, so torch is imported only when needed
    from axon_core.testing.kit import Case

__all__ = ["conformance", "examine"]


def conformance(distribution: str | None = None) -> Callable[[Case], None]:
    """Return a test that runs each check on each part of an installed distribution, or of all of them for None.

    Assign it to a name that begins with `test`. Its ids have the form `attention:mine:causal`.
    """
    import pytest

    @pytest.mark.conformance(distribution)
    def test(case: Case) -> None:
        if failure := case.failure():
            pytest.fail(str(failure), pytrace=False)

    return test


def examine(cls: type[Any], **options: Any) -> dict[str, str]:
    """Run every check of a class's interface on the class, registered or not, and return the failures by check name.

    `options` are fields of its `Config` or, for a trainer, the tables of a recipe (`model`, `data`, `trainer`).
    Without options, its `examples` are used.

    Raises:
        ContractError: the class does not implement one of the interfaces.
    """
    from axon_core.testing.suites import cases_of

    failures: dict[str, str] = {}
    for case in cases_of(cls, options):
        if failure := case.failure():
            failures.setdefault(case.check.name, str(failure))
    return failures
