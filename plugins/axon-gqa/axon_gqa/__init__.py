"""GQA (arXiv 2305.13245): grouped-query and multi-query attention, and the conversion of multi-head checkpoints."""

from axon_gqa.attention import GroupedQueryAttention, MultiQueryAttention
from axon_gqa.conversion import convert_attention, convert_model, mean_pool

__all__ = ["GroupedQueryAttention", "MultiQueryAttention", "convert_attention", "convert_model", "mean_pool"]
