"""RMSNorm (arXiv 1910.07467) as an Axon norm: `NORMS["rmsnorm"]`."""

from axon_rmsnorm.norm import RMSNorm, rms_norm

__all__ = ["RMSNorm", "rms_norm"]
