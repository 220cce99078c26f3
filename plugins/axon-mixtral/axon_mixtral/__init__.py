"""Mixtral (arXiv 2401.04088) for Axon: a sparse mixture of experts as a feed-forward."""

from axon_mixtral.experts import MixtureOfExperts, load_balance

__all__ = ["MixtureOfExperts", "load_balance"]
