"""Direct preference optimisation (arXiv 2305.18290): language models trained on comparisons alone."""

from axon_dpo.data import PreferenceConfig, PreferenceData
from axon_dpo.losses import PREFERENCE_LOSSES, PreferenceLoss
from axon_dpo.trainer import DPOTrainer

__all__ = ["PREFERENCE_LOSSES", "DPOTrainer", "PreferenceConfig", "PreferenceData", "PreferenceLoss"]
