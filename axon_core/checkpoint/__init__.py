"""Weights and checkpoints on disk: safetensors and JSON, atomic when written, checked when read."""

from axon_core._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "atomic": [
            "claimed_file",
            "claimed_folder",
            "is_occupied",
            "sweep",
            "whole_file",
            "whole_folder",
            "write_text",
            "writing",
        ],
        "checkpoint": ["Checkpoints", "WEIGHTS", "check_vocabulary", "check_weights", "load_config", "save_config"],
        "digests": ["digest"],
        "locks": ["Lock", "lock_folder"],
        "manifest": ["adding", "check_folder", "new_folder", "note", "read_checked"],
        "weights": ["read_tensor", "weightless"],
    },
)
