"""NorMuon (arXiv 2510.05491) for Axon: the optimiser `normuon`."""

from axon_normuon.normuon import NorMuon, NorMuonOptimizer, row_factors

__all__ = ["NorMuon", "NorMuonOptimizer", "row_factors"]
