"""The claims of the paper's card that need trained models, checked on a scaled budget."""

from __future__ import annotations

import math
import os
import statistics
from functools import cache
from typing import Any

from torch import Tensor

from axon_core.papers import NotRun, Outcome
from axon_core.training import Recipe, build_trainer, fit, hook, run_evaluation
from axon_transformer.averaging import mean_weights
from axon_transformer.bleu import bleu
from axon_transformer.search import Search
from axon_transformer.trainer import TranslationTrainer
from axon_transformer.translate import Translator

_SEEDS = (0, 1, 2)
_SETTINGS = (
    "model.dim=128",
    "model.encoder_layers=2",
    "model.decoder_layers=2",
    "model.hidden_dim=512",
    "trainer.batch_size=2048",
    "trainer.steps=440",
    "trainer.schedule=inverse_sqrt",
    "trainer.warmup=40",
)
"""Two epochs of the recipe with a smaller model: about a minute and a half on one core."""


def label_smoothing() -> Outcome:
    """Train with ε = 0 and 0.1, and compare perplexity and BLEU, by beam search, on the validation set.

    Raises `NotRun` without Multi30k.
    """
    plain, smoothed = ([_scores(_trained(smoothing, seed)[0]) for seed in _SEEDS] for smoothing in (0.0, 0.1))
    hurts = statistics.mean(s[0] - p[0] for p, s in zip(plain, smoothed, strict=True))
    gains = [s[1] - p[1] for p, s in zip(plain, smoothed, strict=True)]
    before, after = (statistics.mean(scores[0] for scores in found) for found in (plain, smoothed))
    holds = hurts > 0 and statistics.mean(gains) > 0
    return Outcome(holds, f"perplexity {before:.2f} without, {after:.2f} with; BLEU changes by", gains, _SEEDS)


def beam_search() -> Outcome:
    """Translate the validation set greedily and by beam search with the paper's settings, and compare BLEU.

    Raises `NotRun` without Multi30k.
    """
    trainers = [_trained(0.1, seed)[0] for seed in _SEEDS]
    greedy, beam = ([_bleu(trainer, search) for trainer in trainers] for search in (Search(beam=1), Search()))
    gains = [b - g for g, b in zip(greedy, beam, strict=True)]
    found = f"BLEU {statistics.mean(greedy):.2f} greedily; beam search gains"
    return Outcome(statistics.mean(gains) > 0, found, gains, _SEEDS)


def averaging() -> Outcome:
    """Compare BLEU, by beam search, of the last weights with that of the mean of five checkpoints 6 steps apart.

    These five checkpoints span as much of the training as the paper's: 50 minutes of 12 hours.
    Raises `NotRun` without Multi30k.
    """
    gains: list[float] = []
    for seed in _SEEDS:
        trainer, latest = _trained(0.1, seed)
        last = _bleu(trainer, Search())
        trainer.model.load_state_dict(mean_weights(latest))
        gains.append(_bleu(trainer, Search()) - last)
        trainer.model.load_state_dict(latest[-1])
    return Outcome(statistics.mean(gains) > 0, "BLEU gained by averaging five checkpoints", gains, _SEEDS)


@cache
def _trained(smoothing: float, seed: int) -> tuple[TranslationTrainer, list[dict[str, Tensor]]]:
    """Train, and return the trainer and the weights of the last five checkpoints, 6 steps apart."""
    if "AXON_DATA_DIR" not in os.environ:
        raise NotRun("needs Multi30k: set AXON_DATA_DIR to the folder that contains multi30k/")
    settings = (*_SETTINGS, f"trainer.label_smoothing={smoothing}", f"trainer.seed={seed}")
    trainer: Any = build_trainer(Recipe.load("multi30k-de-en", settings))
    latest: list[dict[str, Tensor]] = []

    class Snapshots:
        @hook
        def step_end(self, fit: Any) -> None:
            left = trainer.config.steps - fit.state.step
            if left % 6 == 0 and left < 30:
                latest.append({name: tensor.clone() for name, tensor in trainer.model.state_dict().items()})

    fit(trainer, hooks=[Snapshots()], progress=False)
    return trainer, latest


def _scores(trainer: TranslationTrainer) -> tuple[float, float]:
    """Return perplexity and BLEU on the validation set."""
    return math.exp(run_evaluation(trainer, trainer.cross_entropy)), _bleu(trainer, Search())


def _bleu(trainer: TranslationTrainer, search: Search) -> float:
    sources, references = zip(*trainer.valid.pairs, strict=True)
    translator = Translator(trainer.model, trainer.tokenizer)
    found = run_evaluation(trainer, lambda: translator.translate(sources, search, batch_size=128))
    return bleu([best.text for best, *_ in found], references).score
