"""X-Llama: Llama 2 (arXiv 2307.09288) composed from registered attentions, rotary embeddings and norms."""

from axon_core import ATTENTIONS as LLAMA_ATTENTIONS_CLASSES
from axon_core import ROTARY_EMBEDDINGS as LLAMA_ROTARY_EMBEDDINGS_CLASSES
from axon_xllama.model import XLlama
from axon_xllama.short_run import short_run_loss
from axon_xllama.trainer import CausalLMTrainer

__all__ = ["LLAMA_ATTENTIONS_CLASSES", "LLAMA_ROTARY_EMBEDDINGS_CLASSES", "CausalLMTrainer", "XLlama", "short_run_loss"]
