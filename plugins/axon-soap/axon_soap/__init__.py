"""SOAP (arXiv 2409.11321) for Axon: the optimisers `soap` and `soap_muon`."""

from axon_soap.eigenbasis import refresh_basis, rotate, rotate_back
from axon_soap.soap import SOAP, SOAPOptimizer
from axon_soap.soap_muon import SOAPMuon, SOAPMuonOptimizer

__all__ = ["SOAP", "SOAPMuon", "SOAPMuonOptimizer", "SOAPOptimizer", "refresh_basis", "rotate", "rotate_back"]
