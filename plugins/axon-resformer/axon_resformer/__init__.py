"""Value residual learning (arXiv 2410.17897) for Axon: attention that mixes its values with the first layer's."""

from axon_resformer.attention import ValueResidualAttention, mix_values

__all__ = ["ValueResidualAttention", "mix_values"]
