"""Llama checkpoints of other projects as X-Llama's, and back: Hugging Face, Meta and llama2.c."""

from axon_xllama.checkpoints.exporting import export_checkpoint
from axon_xllama.checkpoints.importing import import_checkpoint, load_checkpoint
from axon_xllama.checkpoints.matrices import Matrix, matrices

__all__ = ["Matrix", "export_checkpoint", "import_checkpoint", "load_checkpoint", "matrices"]
