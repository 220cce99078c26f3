"""Axon's core: registries, interfaces and one training loop for AI research made of plugins."""

from __future__ import annotations

from importlib import import_module

# Each module, and the public names it defines. Nothing is imported until it is asked for, so that `import axon_core`
# and the listing commands load neither torch nor pydantic. `__init__.pyi` tells type checkers the same.
_NAMES = {
    "attend": ["QKV"],
    "cache": ["Cache", "LayerCache", "State"],
    "claims": ["NotRun", "Outcome"],
    "config": ["Config", "Spec"],
    "data": ["TextConfig", "TextData", "Windows"],
    "errors": [
        "AmbiguousKey",
        "AxonError",
        "CheckpointError",
        "ConfigError",
        "ContextError",
        "ContractError",
        "DataError",
        "Interrupted",
        "PluginLoadError",
        "TrainingError",
        "UnknownKey",
        "UsageError",
    ],
    "chat_template": ["ChatTemplate"],
    "generation": ["Chunk", "Completion", "Request", "chunks", "complete", "generate", "stream"],
    "interfaces.attention": ["Attention"],
    "interfaces.model": ["CausalLM", "Model"],
    "interfaces.norm": ["Norm"],
    "interfaces.rotary_embedding": ["RotaryEmbedding", "Rotation"],
    "interfaces.trainer": ["Trainer"],
    "linear": ["Linear", "StackedLinear"],
    "loop": ["evaluate", "fit"],
    "randomness": ["Key"],
    "recipe": ["Recipe"],
    "registry": [
        "ATTENTIONS",
        "CHAT_TEMPLATES",
        "MODELS",
        "NORMS",
        "ROTARY_EMBEDDINGS",
        "TRAINERS",
        "Registry",
        "refresh",
    ],
    "sampling": ["Sampling"],
    "scope": ["Scope"],
    "tokenizer": ["ByteTokenizer", "CharTokenizer", "DecodeStream", "SentencePieceTokenizer", "Tokenizer"],
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [*_HOME]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        value: object = version("axon-core")
    elif name in _HOME:
        value = getattr(import_module(f"axon_core.{_HOME[name]}"), name)
    else:
        raise AttributeError(f"module 'axon_core' has no attribute {name!r}")
    globals()[name] = value  # the next access finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, "__version__"})
