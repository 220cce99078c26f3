"""Direct preference optimisation (arXiv 2305.18290): language models trained on comparisons, or on feedback, alone."""

from axon_dpo.data import PreferenceConfig, PreferenceData
from axon_dpo.feedback import FeedbackConfig, FeedbackData
from axon_dpo.kto import KTOTrainer
from axon_dpo.losses import PREFERENCE_LOSSES, PreferenceLoss
from axon_dpo.raters import StatedPreference, number_raters, rater_column
from axon_dpo.trainer import DPOTrainer

__all__ = [
    "PREFERENCE_LOSSES",
    "DPOTrainer",
    "FeedbackConfig",
    "FeedbackData",
    "KTOTrainer",
    "PreferenceConfig",
    "PreferenceData",
    "PreferenceLoss",
    "StatedPreference",
    "number_raters",
    "rater_column",
]
