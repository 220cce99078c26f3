# What `__init__.py` resolves lazily, for type checkers; a test compares the two.
from axon_core.nn.attention import QKV as QKV
from axon_core.nn.attention import attend as attend
from axon_core.nn.block_attention import attend_blocks as attend_blocks
from axon_core.nn.block_attention import scores_between as scores_between
from axon_core.nn.dropout import Dropout as Dropout
from axon_core.nn.dropout import drop as drop
from axon_core.nn.dropout import dropout_rows as dropout_rows
from axon_core.nn.dropout import replayed_dropout as replayed_dropout
from axon_core.nn.linear import Linear as Linear
from axon_core.nn.linear import StackedLinear as StackedLinear
from axon_core.nn.linear import affine as affine
from axon_core.nn.packed import PackedLinear as PackedLinear
from axon_core.nn.packed import pack as pack
from axon_core.nn.packed import pack_weight as pack_weight
from axon_core.nn.packed import packed_product as packed_product
from axon_core.nn.quantization import quantize as quantize
from axon_core.nn.row_dependence import rows_depend as rows_depend
