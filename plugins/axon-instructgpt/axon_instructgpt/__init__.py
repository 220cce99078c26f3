"""InstructGPT (arXiv 2203.02155): supervised fine-tuning, reward models, PPO-ptx, and the pipeline that joins them."""

from axon_instructgpt.ghost import ghost_demonstration, instructed
from axon_instructgpt.packing import pack
from axon_instructgpt.pipeline import Pipeline, align
from axon_instructgpt.ptx import Pretraining
from axon_instructgpt.ranking import LARGE_MARGINS, SMALL_MARGINS, ranking_loss
from axon_instructgpt.reward import RewardTrainer
from axon_instructgpt.reward_model import RewardModel
from axon_instructgpt.selection import best_of, best_of_n_kl, rejection_sampled
from axon_instructgpt.sft import SFTTrainer
from axon_instructgpt.stage import STAGES, Stage

__all__ = [
    "LARGE_MARGINS",
    "SMALL_MARGINS",
    "STAGES",
    "Pipeline",
    "Pretraining",
    "RewardModel",
    "RewardTrainer",
    "SFTTrainer",
    "Stage",
    "align",
    "best_of",
    "best_of_n_kl",
    "ghost_demonstration",
    "instructed",
    "pack",
    "ranking_loss",
    "rejection_sampled",
]
