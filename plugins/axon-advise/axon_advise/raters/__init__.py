"""Preferences of several raters: how reliable each is, learnt together with the reward."""

from axon_advise.raters.labelling import KnownRater, RatedComparisons, labelled
from axon_advise.raters.loss import RatersLoss
from axon_advise.raters.mixture import (
    label_logprob,
    labels_logprob,
    reliability_posterior,
    reliability_update,
    right_posterior,
)
from axon_advise.raters.ratings import Rating, draw_ratings, ratings_table, read_ratings
from axon_advise.raters.report import RaterReport, order_accuracy
from axon_advise.raters.table import ItemLabels, ItemRewards, fit_bradley_terry, fit_items, fit_items_by_em

__all__ = [
    "ItemLabels",
    "ItemRewards",
    "KnownRater",
    "RatedComparisons",
    "RaterReport",
    "RatersLoss",
    "Rating",
    "draw_ratings",
    "fit_bradley_terry",
    "fit_items",
    "fit_items_by_em",
    "label_logprob",
    "labelled",
    "labels_logprob",
    "order_accuracy",
    "ratings_table",
    "read_ratings",
    "reliability_posterior",
    "reliability_update",
    "right_posterior",
]
