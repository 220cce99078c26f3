"""Cautious weight decay (arXiv 2510.12402) for Axon: the rule `cautious`."""

from axon_cwd.decay import CautiousDecay, cautious_decay

__all__ = ["CautiousDecay", "cautious_decay"]
