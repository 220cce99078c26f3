"""The conformance kit: the properties that the parts of every plugin must have.

A plugin's tests run it on everything the plugin registers:

    from axon_core.testing import conformance

    test_conformance = conformance("my-plugin")

`axon check my-plugin` prints the same results as a table, and `examine` checks a class that is not registered yet.
"""

from axon_core._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "modules": ["PlainRotary"],
        "run": ["conformance", "examine"],
    },
)
