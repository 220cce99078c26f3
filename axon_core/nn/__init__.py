"""What modules compute with: linear maps, plain and packed; attention; dropout by example; weights in few bits."""

from axon_core._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "_native": ["compile_kernels"],
        "activation": ["GatedSiLU", "gated_silu"],
        "attention": ["QKV", "attend"],
        "auxiliary_loss": ["add_auxiliary_loss", "auxiliary_losses"],
        "block_attention": ["attend_blocks", "scores_between"],
        "choice": ["best_tokens"],
        "dropout": ["Dropout", "drop", "dropout_rows", "replayed_dropout"],
        "levels": ["LevelLinear", "widen_levels"],
        "linear": ["Linear", "StackedLinear", "TiedLinear", "affine"],
        "packed": ["PackedLinear", "pack_products", "pack_weight", "packed_product"],
        "quantization": ["QUANTIZATIONS", "Quantization", "QuantizedLinear", "copy_replacing", "quantize"],
        "row_dependence": ["rows_depend"],
    },
)
