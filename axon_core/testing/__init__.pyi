# What `__init__.py` resolves lazily, for type checkers; a test compares the two.
from axon_core.testing.modules import PlainRotary as PlainRotary
from axon_core.testing.run import conformance as conformance
from axon_core.testing.run import examine as examine
