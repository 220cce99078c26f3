"""LoRA (arXiv 2106.09685): fine-tuning by low-rank updates, for any registered model and any trainer."""

from axon_lora.adapter import ADAPTERS, Adapter, AdapterSection
from axon_lora.lora import LoRA
from axon_lora.low_rank import LowRank, LowRankUpdate, decomposed_weight, low_rank_scale, merged_weight, updated_weight
from axon_lora.targets import find_targets, linear_maps

__all__ = [
    "ADAPTERS",
    "Adapter",
    "AdapterSection",
    "LoRA",
    "LowRank",
    "LowRankUpdate",
    "decomposed_weight",
    "find_targets",
    "linear_maps",
    "low_rank_scale",
    "merged_weight",
    "updated_weight",
]
