"""The pytest plugin behind `axon_core.testing.conformance`; it is loaded by every pytest run, and imports no torch."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Describe the marker that `conformance` puts on its tests."""
    text = "conformance(distribution): run Axon's conformance kit over the parts of a distribution, or of all"
    config.addinivalue_line("markers", text)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a marked test once for each check on each part."""
    if marker := metafunc.definition.get_closest_marker("conformance"):
        from axon_core.testing.suites import cases

        found = list(cases(*marker.args))
        metafunc.parametrize("case", found, ids=[case.id for case in found])
