"""Training: the trainer's interface, recipes and building from them, the loop, optimisers, run folders, hooks."""

from axon_core._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "build": ["build_trainer"],
        "callbacks.curves": ["draw_curves"],
        "callbacks.log": ["Log"],
        "callbacks.tensorboard": ["TensorBoard"],
        "callbacks.wandb": ["Wandb"],
        "devices": ["AUTO", "choose_device", "describe_device", "to_device", "works_apart"],
        "direct_trainer": ["DirectTrainer"],
        "evaluation": [
            "TextEvaluation",
            "coverage",
            "evenly_spaced",
            "held_out_likelihood",
            "report_progress",
            "report_progress_to",
            "track_own",
            "track_progress",
        ],
        "hooks": ["hook"],
        "loop": ["Fit", "evaluate", "fit", "run_evaluation"],
        "initial": ["InitialModel", "new_model"],
        "optim": [
            "OPTIMIZERS",
            "AdamW",
            "Muon",
            "Optimizer",
            "OptimizerConfig",
            "matrices_and_vectors",
            "schedule",
        ],
        "pretrained": [
            "Saved",
            "load_pretrained",
            "model_folder",
            "named_model_folder",
            "pinned_model_folder",
            "tokenizer_difference",
        ],
        "recipe": ["Recipe", "override"],
        "run_folder": ["RunFolder"],
        "recipe_sections": ["RECIPE_SECTIONS"],
        "sections": ["RecipeSection"],
        "trainer": ["Trainer"],
        "trainers": ["TRAINERS"],
    },
)
