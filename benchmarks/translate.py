"""Translating with beam 4 and greedily: Axon beside CTranslate2, JoeyNMT, and its own search without cache and batches.

    pip install -c constraints.txt -e ".[bench]"    # CTranslate2; without it, it is named and left out
    AXON_DATA_DIR=... python benchmarks/translate.py [RUN] [--rounds 5] [--save] [--joeynmt PYTHON]

All decode the same weights, those of a run of recipe `multi30k-de-en`, in batches of 64 sentences of like length, by
log-probability alone (`--length-penalty` 0): the penalties of the two are different functions. Each contender has a
process of its own and they take turns; figures are medians over the rounds, from texts to texts, with Axon's tokenizer
around both. A translation that differs is scored by the model in float64, both ways.

JoeyNMT (https://github.com/joeynmt/joeynmt), where it is installed, runs in its own interpreter. The plain search is
slow, so it takes every n-th sentence.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from support.joeynmt import joeynmt
from support.machine import Others
from support.record import facts, save, say
from support.translators import Translated, axon, ctranslate2
from support.workers import Worker
from torch import Tensor

from axon_core.training.build import build_trainer
from axon_core.training.loop import fit
from axon_core.training.pretrained import model_folder
from axon_core.training.recipe import Recipe
from axon_transformer import Search, Transformer, Translator, beam_search, bleu
from axon_transformer.corpus import read_lines

CONTENDERS = {
    "axon float32": (axon, "float32"),
    "ctranslate2 float32": (ctranslate2, "float32"),
    "axon int8": (axon, "int8"),
    "ctranslate2 int8": (ctranslate2, "int8"),
}


class PlainScorer:
    """Scores one sentence's rows by running all their tokens again."""

    def __init__(self, model: Transformer, source: list[int]) -> None:
        self.model, self.source = model, torch.tensor([source])

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the logits of the token that follows each row."""
        return self.model(self.source.expand(len(rows), -1), rows)[:, -1]

    def reorder(self, rows: Tensor) -> None:
        """Keep nothing that had to be reordered."""

    def keep(self, rows: Tensor, sentences: Tensor) -> None:
        """Keep nothing that had to be dropped."""


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="a run of recipe multi30k-de-en; left out, one of 300 steps")
    parser.add_argument("--sentences", type=int, default=1000, help="how many of the test sentences")
    parser.add_argument("--beams", type=int, nargs="+", default=[4, 1])
    parser.add_argument("--length-penalty", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--plain-every", type=int, help="also run the plain search, on every n-th of them")
    parser.add_argument("--joeynmt", metavar="PYTHON", help="an interpreter that has JoeyNMT")
    parser.add_argument("--save", action="store_true", help="keep the figures in results/")
    options = parser.parse_args()
    texts, references = (
        read_lines(f"$AXON_DATA_DIR/multi30k/test_2016_flickr.{side}.gz")[: options.sentences] for side in ("de", "en")
    )
    others = Others()
    with tempfile.TemporaryDirectory() as made:
        folder = model_folder(options.run) if options.run else trained(Path(made) / "run")
        rounds = measure(folder, texts, options)
        translator = Translator(Transformer.load(folder).eval(), Translator.load(folder).tokenizer)
        found = [figures(translator, texts, references, beam, rounds[beam], options) for beam in options.beams]
        further = slower(translator, texts, references, options)
    results = {**facts("cpu", options.threads), "others": others.share(), "sentences": len(texts)}
    results |= {"parameters": translator.model.n_parameters, "length_penalty": options.length_penalty}
    results |= {"rounds": options.rounds, "figures": found, "further": further}
    print(json.dumps(results, indent=2))
    show(found, further)
    say(f"others took {results['others']:.0%} of the processors")
    if options.save:
        say(f"saved as {save('translate-7m-cpu', results)}")


def trained(out: Path) -> Path:
    """Return the model folder of a training of a few minutes."""
    recipe = Recipe.load("multi30k-de-en", ["trainer.steps=300", "trainer.eval_every=300"])
    trainer: Any = build_trainer(recipe)
    fit(trainer, progress=False)
    trainer.model.eval().save(out, trainer.tokenizer)
    return out


def measure(folder: Path, texts: list[str], options: argparse.Namespace) -> dict[int, dict[str, list[Translated]]]:
    """Return what each contender found in each round, by beam."""
    workers: dict[str, Worker] = {}
    for name, (make, precision) in CONTENDERS.items():
        try:
            workers[name] = Worker(make, folder, precision, options.threads)
        except ModuleNotFoundError as error:
            say(f"{name} is left out: {error}")
    rounds: dict[int, dict[str, list[Translated]]] = {beam: {name: [] for name in workers} for beam in options.beams}
    for worker in workers.values():
        worker(texts[:64], max(options.beams), options.length_penalty)  # to warm up
    for number in range(options.rounds):
        for beam, found in rounds.items():
            for name, worker in workers.items():
                found[name].append(Translated(*worker(texts, beam, options.length_penalty)))
        say(f"round {number + 1} of {options.rounds}")
    for worker in workers.values():
        worker.close()
    return rounds


def figures(
    translator: Translator,
    texts: list[str],
    references: list[str],
    beam: int,
    rounds: dict[str, list[Translated]],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Return what came out for one beam: speeds, their ratios round by round, BLEU, and what differs."""
    seconds = {name: [each.seconds for each in found] for name, found in rounds.items()}
    contenders = [
        {
            "name": name,
            "sentences_per_second": len(texts) / statistics.median(seconds[name]),
            "rounds": [len(texts) / each for each in seconds[name]],
            "bleu": bleu(found[0].texts, references).score,
        }
        for name, found in rounds.items()
    ]
    ratios: dict[str, float] = {}
    differing: dict[str, Any] = {}
    for precision in ("float32", "int8"):
        ours, theirs = f"axon {precision}", f"ctranslate2 {precision}"
        if theirs not in rounds:
            continue
        ratios[precision] = statistics.median(b / a for a, b in zip(seconds[ours], seconds[theirs], strict=True))
        both = rounds[ours][0].tokens, rounds[theirs][0].tokens
        differing[precision] = differences(translator, texts, *both)
    return {"beam": beam, "contenders": contenders, "ratios": ratios, "differing": differing}


def differences(
    translator: Translator, texts: list[str], ours: Sequence[list[int]], theirs: Sequence[list[int]]
) -> dict[str, Any]:
    """Return how many translations differ, and by how much log-probability in float64: ours minus theirs."""
    model, sources = Transformer.build(**translator.model.config.model_dump()).double().eval(), translator.encode(texts)
    model.load_state_dict(translator.model.state_dict())
    apart: list[float] = []
    for source, *both in zip(sources, ours, theirs, strict=True):
        if both[0] != both[1]:
            one, other = (logprob(model, translator, source, tokens) for tokens in both)
            apart.append(one - other)
    return {
        "count": len(apart),
        "near_ties": sum(abs(each) < 1e-3 for each in apart),
        "ours_likelier": sum(each >= 1e-3 for each in apart),
        "largest": max(map(abs, apart), default=0.0),
        "mean": statistics.mean(apart) if apart else 0.0,
    }


@torch.no_grad()
def logprob(model: Transformer, translator: Translator, source: list[int], tokens: list[int]) -> float:
    """Return the log-probability of a translation and its end marker."""
    target = [translator.bos, *tokens][: model.config.context]
    scores = model(torch.tensor([source]), torch.tensor([target]))[0].log_softmax(-1)
    return sum(scores[i, token].item() for i, token in enumerate([*tokens, translator.eos][: len(target)]))


def slower(
    translator: Translator, texts: list[str], references: list[str], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return the figures of the plain search and of JoeyNMT, where they are asked for: with beam 4 and penalty 0.6."""
    search, found = Search(beam=4), list[dict[str, Any]]()
    if options.plain_every:
        few = texts[:: options.plain_every]
        begun = time.perf_counter()
        plain(translator, few, search)
        each = (time.perf_counter() - begun) / len(few)
        found.append({"name": "axon, no cache, no batches", "sentences_per_second": 1 / each})
    if options.joeynmt:
        seconds, theirs = joeynmt(options.joeynmt, translator, texts, search)
        score = bleu(theirs, references).score
        found.append({"name": "joeynmt", "sentences_per_second": len(texts) / seconds, "bleu": score})
    return found


def plain(translator: Translator, texts: list[str], search: Search) -> list[str]:
    """Translate one sentence after another, without a cache."""
    found: list[str] = []
    for source in translator.encode(texts):
        limit = min(len(source) + search.longer, translator.model.config.context)
        scorer = PlainScorer(translator.model, source)
        ((best,),) = beam_search(scorer, [limit], search, bos=translator.bos, eos=translator.eos)
        found.append(translator.tokenizer.decode(best.tokens))
    return found


def show(found: Sequence[dict[str, Any]], further: Sequence[dict[str, Any]]) -> None:
    """Print the figures as a table."""
    for each in found:
        say(f"beam {each['beam']}")
        for one in each["contenders"]:
            say(f"  {one['name']:22}{one['sentences_per_second']:8.1f} sentences/s, BLEU {one['bleu']:.2f}")
        for precision, ratio in each["ratios"].items():
            say(f"  {precision}: {ratio:.2f} times CTranslate2's; differing: {each['differing'][precision]}")
    for one in further:
        say(f"{one['name']}: {one['sentences_per_second']:.1f} sentences/s")


if __name__ == "__main__":
    main()
