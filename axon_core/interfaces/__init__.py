"""What a part or a model is: attentions, norms, rotary embeddings, models; and what they are handed."""

from axon_core._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "attention": ["Attention"],
        "cache": ["Cache", "CacheStep", "LayerCache", "StateSpec"],
        "model": ["CausalLM", "Model"],
        "norm": ["Norm"],
        "overlay": ["Overlay"],
        "rotary_embedding": ["Layout", "RotaryEmbedding", "Rotation"],
        "scope": ["Between", "Kernel", "Scope"],
        "tensor_split": ["TensorSplit"],
    },
)
