"""DenseFormer (arXiv 2402.02622) for Axon: layers that read a weighted sum of all layers before them."""

from axon_denseformer.streams import DepthWeightedAverage, EmbeddingMix, weighted_sum

__all__ = ["DepthWeightedAverage", "EmbeddingMix", "weighted_sum"]
