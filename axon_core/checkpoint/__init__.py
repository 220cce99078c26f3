"""Weights and checkpoints on disk: safetensors and JSON, atomic when written, checked when read."""

from axon_core._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "atomic": [
            "atomic_file",
            "atomic_folder",
            "claimed_file",
            "claimed_folder",
            "is_occupied",
            "remove_leftovers",
            "write_text",
            "writing",
        ],
        "checkpoint": ["Checkpoints"],
        "digests": ["digest"],
        "locks": ["Lock", "lock_folder"],
        "manifest": ["add_to_manifest", "check_folder", "claimed_files", "new_folder", "read_checked"],
        "model_folder": ["WEIGHTS", "base_of", "check_weights", "own_tensors", "section_of", "whole_weights"],
        "models": ["check_vocabulary", "load_config", "load_into", "save_config"],
        "overlays": ["WeightChange"],
        "weights": ["read_tensor", "weightless"],
    },
)
