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
        "devices": ["AUTO", "choose_device", "describe_device"],
        "distributed": ["sum_numbers"],
        "evaluating": [
            "Clock",
            "TextEvaluation",
            "coverage",
            "listening",
            "measure",
            "spread",
            "tell",
            "tracked",
        ],
        "hooks": ["hook"],
        "loop": ["Fit", "evaluate", "evaluation", "fit"],
        "optim": ["AdamW", "Muon", "Optimizer", "schedule"],
        "pretrained": ["Saved", "load", "model_folder", "place", "reading", "tokenizer_difference"],
        "recipe": ["Recipe", "override"],
        "run_folder": ["RunFolder"],
        "trainer": ["Trainer"],
        "trainers": ["TRAINERS"],
    },
)
