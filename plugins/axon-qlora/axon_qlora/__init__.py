"""QLoRA's 4-bit weights (arXiv 2305.14314) for Axon: NF4, double quantisation, and the quantisation `nf4`."""

from axon_qlora.dynamic import dynamic_map, from_double, from_dynamic, to_double, to_dynamic
from axon_qlora.linear import NF4, NF4Linear
from axon_qlora.nf4 import LEVELS, from_nf4, to_nf4

__all__ = [
    "LEVELS",
    "NF4",
    "NF4Linear",
    "dynamic_map",
    "from_double",
    "from_dynamic",
    "from_nf4",
    "to_double",
    "to_dynamic",
    "to_nf4",
]
