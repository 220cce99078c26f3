# What `__init__.py` resolves lazily, for type checkers; a test compares the two.
from axon_core.nn.attention import QKV as QKV
from axon_core.nn.attention import attend as attend
from axon_core.nn.linear import Linear as Linear
from axon_core.nn.linear import StackedLinear as StackedLinear
from axon_core.nn.linear import affine as affine
