"""The conformance kit: what every plugin's parts must satisfy, whoever wrote them.

A plugin's own tests run it over everything the plugin registers:

    from axon_core.testing import conformance

    test_conformance = conformance("my-plugin")

`axon check my-plugin` prints the same as a table, and `examine` looks at a class that is not registered yet.
"""

from axon_core._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "modules": ["PlainRotary"],
        "run": ["conformance", "examine"],
    },
)
