"""What modules compute with: linear maps, attention under a scope, dropout by example, 8-bit weights."""

from axon_core._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "attention": ["QKV", "attend"],
        "dropout": ["Dropout", "drop", "dropout_rows", "replayed_dropout"],
        "linear": ["Linear", "StackedLinear", "affine"],
    },
)
