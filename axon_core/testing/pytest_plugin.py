"""The pytest plugin behind `axon_core.testing.conformance`. Every pytest run loads it, so it does not import torch."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Describe the marker that `conformance` puts on its tests."""
    text = "conformance(distribution): run Axon's conformance kit on the parts of one distribution, or of all"
    config.addinivalue_line("markers", text)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a marked test once for each check on each part."""
    if marker := metafunc.definition.get_closest_marker("conformance"):
        from axon_core.testing.suites import cases

        found = list(cases(*marker.args))
        metafunc.parametrize("case", found, ids=[case.id for case in found])
