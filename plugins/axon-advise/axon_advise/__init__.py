"""Learning from several trainers of unknown reliability (arXiv 2111.08596), in environments with tables."""

from axon_advise.estimation import (
    Answers,
    Beliefs,
    expectation_maximisation,
    log_likelihood,
    variational_inference,
)
from axon_advise.feedback import FEEDBACKS, AnswerRates, FeedbackSource
from axon_advise.learning import play_episodes
from axon_advise.reliability import RELIABILITIES, Reliability
from axon_advise.shaping import any_optimal, log_odds, one_optimal, trainer_scores
from axon_advise.tabular import (
    TabularEnvironment,
    TransitionTable,
    expected_return,
    optimal_actions,
    value_iteration,
)
from axon_advise.trainer import AdviseTrainer

__all__ = [
    "FEEDBACKS",
    "RELIABILITIES",
    "AdviseTrainer",
    "AnswerRates",
    "Answers",
    "Beliefs",
    "FeedbackSource",
    "Reliability",
    "TabularEnvironment",
    "TransitionTable",
    "any_optimal",
    "expectation_maximisation",
    "expected_return",
    "log_likelihood",
    "log_odds",
    "one_optimal",
    "optimal_actions",
    "play_episodes",
    "trainer_scores",
    "value_iteration",
    "variational_inference",
]
