"""Beam search: the most likely translations that a few candidates, kept side by side, lead to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NamedTuple, Protocol, Self

import torch
from jaxtyping import Float, Int
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor

from axon_core import CheckpointError, config
from axon_core.nn import best_tokens
from axon_transformer.layers import Memory
from axon_transformer.model import Transformer
from axon_transformer.rows import BeamCache

Beam = Annotated[int, Field(ge=1, le=1000)]  # more is a typo, and no memory holds a batch of them
Alpha = Annotated[float, Field(ge=0, le=10)]  # powers of more overflow


class Search(config.Config):
    """How translations are searched for."""

    beam: Beam = 4
    """Candidates kept side by side (arXiv 1706.03762, Section 6.1); 1 is greedy decoding."""
    length_penalty: Alpha = 0.6
    """α: how strongly longer translations are preferred (Section 6.1); see the function of that name."""
    longer: NonNegativeInt = 50
    """How many more tokens a translation may have than its source (Section 6.1)."""
    n_best: PositiveInt = 1
    """How many translations are returned."""

    @model_validator(mode="after")
    def _found(self) -> Self:
        if self.n_best > self.beam:
            raise ValueError(f"n_best must be at most beam, got {self.n_best} > {self.beam}")
        return self


class Hypothesis(NamedTuple):
    """One translation."""

    tokens: list[int]
    """Its tokens, without markers."""
    logprob: float
    """Its log-probability in nats, the end marker's included."""
    score: float
    """`logprob / length_penalty`, by which translations are ranked."""
    ended: bool
    """Whether it reached its end marker; one that was cut off at the limit ranks after those that did."""


class TokenScorer(Protocol):
    """Scores the next token of rows of tokens; row r belongs to sentence r // beam."""

    def __call__(self, rows: Int[Tensor, "r n"]) -> Float[Tensor, "r v"]:
        """Return the logits of the token that follows each row; every call has one token more than the previous one."""
        ...

    def reorder(self, rows: Int[Tensor, " r"]) -> None:
        """Note that row i continues what was row `rows[i]`, of the same sentence."""
        ...

    def keep(self, rows: Int[Tensor, " r"], sentences: Int[Tensor, " s"]) -> None:
        """Note that only these sentences, and these of the rows, continue, in this order."""
        ...


class CachedScorer:
    """Scores with a Transformer that keeps the keys and values of all tokens, so that each is computed once.

    It takes over the memory: finished sentences are dropped from it.
    """

    def __init__(self, model: Transformer, memory: Memory, beam: int, longest: int) -> None:
        self._model = model
        self._memory = memory
        self._device = memory.features.device
        self._size = len(memory) * beam, longest
        self._cache = model.new_beam_cache(*self._size)

    def __call__(self, rows: Int[Tensor, "r n"]) -> Float[Tensor, "r v"]:
        """Return the logits of the token that follows each row."""
        features = self._decode(rows)
        if rows.shape[1] == 1 and isinstance(self._cache, BeamCache) and self._cache.reads < len(self._cache.layers):
            self._cache = self._model.new_cache(*self._size)  # an attention does not use the core's kernels
            features = self._decode(rows)
        return self._model.logits(features[:, -1])

    def _decode(self, rows: Int[Tensor, "r n"]) -> Float[Tensor, "r 1 d"]:
        return self._model.decode(rows[:, -1:].to(self._device), self._memory, cache=self._cache)

    def reorder(self, rows: Int[Tensor, " r"]) -> None:
        """Reorder the cache."""
        self._cache.reorder(rows.to(self._device))

    def keep(self, rows: Int[Tensor, " r"], sentences: Int[Tensor, " s"]) -> None:
        """Drop what belongs to the other rows and sentences."""
        self._cache.keep(rows.to(self._device))
        self._memory.keep(sentences.to(self._device))


def length_penalty(length: int, alpha: float) -> float:
    """Return ((5 + length) / 6)^α, where `length` counts the end marker (arXiv 1609.08144, Section 7, Eq. 14)."""
    return ((5 + length) / 6) ** alpha


@torch.no_grad()
def beam_search(
    scorer: TokenScorer, limits: Sequence[int], search: Search, *, bos: int, eos: int, vocab_size: int | None = None
) -> list[list[Hypothesis]]:
    """Return the `n_best` translations of each sentence, best first.

    Each step keeps the `beam` best continuations of a sentence's candidates. Those that reach the end marker leave the
    candidates. A sentence is done at the limit, when no candidate is left, or when the best of them could not get into
    the `n_best` that have ended, even by staying as likely as it is up to the limit. So beam 1 is greedy decoding, and
    a beam as wide as there are possible rows of tokens finds the best of all.

    Args:
        scorer: scores `len(limits) * beam` rows, all of which begin with `bos`.
        limits: the largest number of tokens, end marker included, for each sentence.
        search: how to search.
        bos: the marker at the beginning.
        eos: the marker at the end.
        vocab_size: how many tokens the tokenizer has: rows of the model beyond it are never drawn. None: no limit.

    Raises:
        CheckpointError: the model's scores are not numbers.
    """
    k, alpha = search.beam, search.length_penalty
    found: list[list[Hypothesis]] = [[] for _ in limits]
    going = list(range(len(limits)))  # the sentences that the scorer has rows for
    rows = torch.full((len(going) * k, 1), bos)
    alive = torch.full((len(going), k), -torch.inf, dtype=torch.float64)  # log-probabilities of the candidates
    alive[:, 0] = 0.0
    for length in range(1, max(limits, default=0) + 1):
        scores, tokens = _best(scorer(rows), k, bos, vocab_size)
        alive, best = (alive.view(-1, 1) + scores).view(len(going), -1).topk(k)
        if alive.isnan().any():
            raise CheckpointError("the model's scores are not numbers (NaN): its weights are damaged; use earlier ones")
        chosen = tokens.view(len(going), -1).gather(1, best)
        parents = (best // tokens.shape[-1] + k * torch.arange(len(going)).unsqueeze(1)).flatten()
        rows = torch.cat((rows[parents], chosen.view(-1, 1)), 1)
        ended = (chosen == eos) & alive.isfinite()
        for i, j in ended.nonzero().tolist():
            _add(found[going[i]], rows[i * k + j, 1:-1], alive[i, j].item(), length, alpha, ended=True)
        alive = alive.masked_fill(ended, -torch.inf)
        left: list[int] = []
        for i, (sentence, total) in enumerate(zip(going, alive.max(-1).values.tolist(), strict=True)):
            bound = total / length_penalty(limits[sentence], alpha)
            if total == -torch.inf or _is_beaten(bound, found[sentence], search.n_best):
                continue
            if length < limits[sentence]:
                left.append(i)
                continue
            for j, logprob in enumerate(alive[i].tolist()):
                if logprob > -torch.inf:
                    _add(found[sentence], rows[i * k + j, 1:], logprob, length, alpha, ended=False)
        if not left:
            break
        if len(left) < len(going):
            sentences = torch.tensor(left)
            kept = (k * sentences.unsqueeze(1) + torch.arange(k)).flatten()
            rows, alive, going = rows[kept], alive[sentences], [going[i] for i in left]
            scorer.keep(parents[kept], sentences)
        elif k > 1:
            scorer.reorder(parents)
    return [sorted(each, key=lambda one: (not one.ended, -one.score))[: search.n_best] for each in found]


def _is_beaten(score: float, ended: Sequence[Hypothesis], n_best: int) -> bool:
    """Whether a score does not reach the `n_best` best of the hypotheses that have ended."""
    return len(ended) >= n_best and score <= sorted((one.score for one in ended), reverse=True)[n_best - 1]


def _best(
    logits: Float[Tensor, "r v"], k: int, bos: int, vocab_size: int | None
) -> tuple[Float[Tensor, "r k"], Int[Tensor, "r k"]]:
    """Return log-probabilities and ids of each row's k best tokens: no other can be among the k best of a sentence.

    `bos` is never one of them: a translation begins only once. Nor are rows of the model that stand for no token.
    """
    limit = logits.shape[-1] if vocab_size is None else vocab_size
    scores, tokens = best_tokens(logits, min(k, limit), limit=limit, without=bos)
    return scores.cpu(), tokens.cpu()


def _add(
    found: list[Hypothesis], tokens: Int[Tensor, " n"], logprob: float, length: int, alpha: float, *, ended: bool
) -> None:
    found.append(Hypothesis(tokens.tolist(), logprob, logprob / length_penalty(length, alpha), ended))
