"""Beam search: exact where it can be, greedy where it is one wide, and the same however it is computed."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from axon_core import CheckpointError, ConfigError, validate
from axon_transformer import Search, Transformer, beam_search
from axon_transformer.search import CachedScorer, length_penalty

BOS, EOS, VOCABULARY = 0, 1, 5
SOURCES = [[2, 3, 4, 2, 1], [3, 1], [4, 4, 2, 1], [2, 2, 3, 4, 3, 2, 1]]


def build(seed: int = 0, **values: Any) -> Transformer:
    """Return a small model in float64, so that rounding decides nothing, whose scores are far from uniform."""
    torch.manual_seed(seed)
    sizes = {"dim": 16, "n_heads": 2, "encoder_layers": 1, "decoder_layers": 2, "context": 12}
    model = Transformer.build(vocab_size=VOCABULARY, **{**sizes, **values}).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


class PlainScorer:
    """Scores by running all tokens anew in each step, without a cache."""

    def __init__(self, model: Transformer, source: Tensor, valid: Tensor, beam: int) -> None:
        self.model, self.source, self.valid, self.beam = model, source, valid, beam

    def __call__(self, rows: Tensor) -> Tensor:
        source, valid = (each.repeat_interleave(self.beam, 0) for each in (self.source, self.valid))
        return self.model(source, rows, valid=valid)[:, -1]

    def reorder(self, rows: Tensor) -> None:
        pass

    def keep(self, rows: Tensor, sentences: Tensor) -> None:
        self.source, self.valid = self.source[sentences], self.valid[sentences]


def padded(sources: list[list[int]], more: int = 0, filler: int = 3) -> tuple[Tensor, Tensor]:
    longest = max(map(len, sources)) + more
    rows = torch.tensor([[*source, *[filler] * (longest - len(source))] for source in sources])
    return rows, torch.arange(longest) < torch.tensor([len(source) for source in sources]).unsqueeze(1)


def search(
    model: Transformer,
    sources: list[list[int]],
    limits: int = 8,
    *,
    plain: bool = False,
    padding: tuple[int, int] = (0, 3),
    **options: Any,
) -> list[Any]:
    how = Search(**options)
    source, valid = padded(sources, *padding)
    with torch.no_grad():
        if plain:
            scorer: Any = PlainScorer(model, source, valid, how.beam)
        else:
            scorer = CachedScorer(model, model.encode(source, valid=valid), how.beam, limits)
        return beam_search(scorer, [limits] * len(sources), how, bos=BOS, eos=EOS)


def logprob(model: Transformer, source: list[int], tokens: list[int]) -> float:
    """Log-probability of a whole translation, its end marker included, by one pass."""
    with torch.no_grad():
        scores = model(torch.tensor([source]), torch.tensor([[BOS, *tokens]])).log_softmax(-1)[0]
    return sum(scores[i, token].item() for i, token in enumerate([*tokens, EOS]))


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_beam_as_wide_as_all_rows_finds_the_best_of_all(alpha: float, seed: int) -> None:
    model, limit = build(seed), 4
    others = [token for token in range(VOCABULARY) if token not in (BOS, EOS)]
    rows = [list(row) for n in range(limit) for row in itertools.product(others, repeat=n)]
    for source in SOURCES[:2]:
        scored = [(logprob(model, source, row) / length_penalty(len(row) + 1, alpha), row) for row in rows]
        scored.sort(reverse=True)
        (found,) = search(model, [source], limit, beam=len(others) ** limit, n_best=5, length_penalty=alpha)
        assert [one.tokens for one in found] == [row for _, row in scored[:5]]
        assert [one.score for one in found] == pytest.approx([score for score, _ in scored[:5]], rel=1e-9)
        assert all(one.ended for one in found)


@pytest.mark.parametrize("seed", range(6))
def test_beam_one_is_greedy(seed: int) -> None:
    model = build(seed)
    found = search(model, SOURCES, beam=1)
    for source, (one,) in zip(SOURCES, found, strict=True):
        row = [BOS]
        with torch.no_grad():
            while len(row) <= 8 and (len(row) == 1 or row[-1] != EOS):
                scores = model(torch.tensor([source]), torch.tensor([row]))[0, -1]
                scores[BOS] = -torch.inf
                row.append(int(scores.argmax()))
        assert one.ended == (row[-1] == EOS)
        assert one.tokens == row[1 : -1 if one.ended else None]


@pytest.mark.parametrize("parts", [{}, {"attention": "GQA"}, {"rotary": {"type": "dynamic"}, "context": 4}], ids=str)
@pytest.mark.parametrize("beam", [1, 3, 4])
def test_with_a_cache_it_finds_what_it_finds_without(parts: dict[str, Any], beam: int) -> None:
    model = build(3, **parts)
    cached = search(model, SOURCES, beam=beam, n_best=beam)
    plain = search(model, SOURCES, plain=True, beam=beam, n_best=beam)
    for one, other in zip(itertools.chain(*cached), itertools.chain(*plain), strict=True):
        assert (one.tokens, one.ended) == (other.tokens, other.ended)
        assert one.logprob == pytest.approx(other.logprob, abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_a_batch_finds_what_its_sentences_find_alone(seed: int) -> None:
    """So padding changes nothing, nor do sentences that end earlier and leave the batch."""
    model = build(seed)
    together = search(model, SOURCES, beam=3, n_best=3)
    for source, found in zip(SOURCES, together, strict=True):
        (alone,) = search(model, [source], beam=3, n_best=3)
        assert [(one.tokens, one.ended) for one in found] == [(one.tokens, one.ended) for one in alone]
        assert [one.score for one in found] == pytest.approx([one.score for one in alone], abs=1e-9)


class Diary:
    """Scores rows by their tokens, and keeps for itself what it was told of them, as a cache does."""

    def __init__(self, sentences: int, beam: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.weights = 2 * torch.randn(9, 7, 7, generator=generator)  # by place, token and next token
        self.rows = torch.full((sentences * beam, 0), BOS)
        self.left = 0

    def __call__(self, rows: Tensor) -> Tensor:
        self.rows = torch.cat((self.rows, rows[:, -1:]), 1)
        assert torch.equal(self.rows, rows)
        return sum(self.weights[place, rows[:, place]] for place in range(rows.shape[1]))

    def reorder(self, rows: Tensor) -> None:
        self.rows = self.rows[rows]

    def keep(self, rows: Tensor, sentences: Tensor) -> None:
        self.rows = self.rows[rows]
        self.left += 1


def test_whoever_scores_is_told_what_becomes_of_each_row() -> None:
    """Also where a sentence leaves the batch while another's candidates change places."""
    left = 0
    for seed in range(10):
        scorer = Diary(4, 3, seed)
        beam_search(scorer, [8, 8, 5, 3], Search(beam=3), bos=BOS, eos=EOS)
        left += scorer.left
    assert left > 5


@pytest.mark.parametrize("padding", [(0, EOS), (5, 4), (40, -1)])
def test_what_stands_in_the_padding_and_how_much_of_it_changes_nothing(padding: tuple[int, int]) -> None:
    model = build(2)
    found = search(model, SOURCES, beam=3, n_best=3)
    other = search(model, SOURCES, beam=3, n_best=3, padding=padding)
    for one, same in zip(itertools.chain(*found), itertools.chain(*other), strict=True):
        assert (one.tokens, one.ended) == (same.tokens, same.ended)
        assert one.score == pytest.approx(same.score, abs=1e-9)


def test_scores_are_what_the_model_gives_the_whole_translation() -> None:
    model = build(1)
    ended = 0
    for source, found in zip(SOURCES, search(model, SOURCES, beam=4, n_best=4), strict=True):
        scores = [one.score for one in found if one.ended]
        assert scores == sorted(scores, reverse=True)
        for one in found:
            if one.ended:
                ended += 1
                assert one.logprob == pytest.approx(logprob(model, source, one.tokens), abs=1e-9)
                assert one.score == pytest.approx(one.logprob / length_penalty(len(one.tokens) + 1, 0.6))
    assert ended >= 8


class Table:
    """Scores from a table of what follows each token."""

    def __init__(self, probabilities: dict[int, list[float]]) -> None:
        self.rows = torch.tensor([probabilities.get(i, [0.2] * 5) for i in range(5)]).log()
        self.calls = 0

    def __call__(self, rows: Tensor) -> Tensor:
        self.calls += 1
        return self.rows[rows[:, -1]]

    def reorder(self, rows: Tensor) -> None:
        pass

    def keep(self, rows: Tensor, sentences: Tensor) -> None:
        pass


CHAIN = {
    BOS: [0, 0, 0.7, 0.2, 0.1],
    2: [0, 0.9, 0.05, 0.03, 0.02],
    3: [0, 0.6, 0.2, 0.1, 0.1],
    4: [0, 0.6, 0.2, 0.1, 0.1],
}


def test_a_wider_beam_finds_what_greedy_decoding_passes_by() -> None:
    garden_path = {BOS: [0, 0, 0.6, 0.4, 0], 2: [0, 0.3, 0.25, 0.25, 0.2], 3: [0, 0.9, 0, 0, 0.1]}
    (greedy,), (wide,) = (
        beam_search(Table(garden_path), [6], Search(beam=beam, length_penalty=0.0), bos=BOS, eos=EOS)[0]
        for beam in (1, 2)
    )
    assert greedy.tokens == [2] and greedy.logprob == pytest.approx(torch.tensor(0.18).log().item())
    assert wide.tokens == [3] and wide.logprob == pytest.approx(torch.tensor(0.36).log().item())


def test_search_ends_when_no_candidate_can_become_better() -> None:
    table = Table({BOS: [0, 0.9, 0.05, 0.05, 0], 2: [0, 0.1, 0.9, 0, 0], 3: [0, 0.1, 0.9, 0, 0]})
    (found,) = beam_search(table, [1000], Search(beam=2, length_penalty=0), bos=BOS, eos=EOS)
    assert found[0].tokens == [] and table.calls == 1


@pytest.mark.parametrize("alpha", [0.0, 0.6, 3.0])
@pytest.mark.parametrize("seed", range(4))
def test_what_is_found_does_not_depend_on_how_much_is_asked_for(alpha: float, seed: int) -> None:
    """A search that has to return less may end earlier, and only where it cannot matter."""
    model, options = build(seed), {"beam": 4, "length_penalty": alpha}
    every = search(model, SOURCES, 11, n_best=4, **options)
    for n in (1, 2):
        fewer = search(model, SOURCES, 11, n_best=n, **options)
        assert [[one.tokens for one in each] for each in fewer] == [[one.tokens for one in each[:n]] for each in every]


def test_to_return_less_takes_fewer_steps() -> None:
    one, four = Table(CHAIN), Table(CHAIN)
    for table, n in ((one, 1), (four, 4)):
        beam_search(table, [50], Search(beam=4, n_best=n), bos=BOS, eos=EOS)
    assert one.calls < four.calls < 50


def test_a_translation_that_does_not_end_is_cut_off_at_the_limit_and_says_so() -> None:
    endless = Table({BOS: [0, 0, 1, 0, 0], 2: [0, 0, 1, 0, 0]})
    (found,) = beam_search(endless, [7], Search(beam=2), bos=BOS, eos=EOS)
    assert found[0].tokens == [2] * 7 and not found[0].ended
    rarely = Table({BOS: [0, 0.01, 0.99, 0, 0], 2: [0, 0, 1, 0, 0]})
    (found,) = beam_search(rarely, [7], Search(beam=2, n_best=2), bos=BOS, eos=EOS)
    assert [one.ended for one in found] == [True, False]  # one that ended comes first, unlikely as it is


def test_a_higher_length_penalty_prefers_longer_translations() -> None:
    table = {BOS: [0, 0.55, 0.45, 0, 0], 2: [0, 0.9, 0, 0, 0.1], 4: [0, 0.5, 0.5, 0, 0]}
    short, long = (
        beam_search(Table(table), [6], Search(beam=3, length_penalty=alpha), bos=BOS, eos=EOS)[0][0].tokens
        for alpha in (0.0, 4.0)
    )
    assert short == [] and long == [2]


def test_length_penalty_known_values() -> None:
    assert length_penalty(1, 0.6) == 1.0
    assert length_penalty(7, 1.0) == 2.0
    assert length_penalty(19, 0.5) == 2.0
    assert length_penalty(100, 0.0) == 1.0


def test_a_translation_holds_no_marker_of_its_beginning() -> None:
    model = build()
    with torch.no_grad():
        model.embedding.weight[BOS] *= 20  # so that it is often the likeliest
    found = search(model, SOURCES, beam=4, n_best=4)
    assert all(BOS not in one.tokens for one in itertools.chain(*found))


def test_more_translations_than_candidates_cannot_be_had() -> None:
    with pytest.raises(ConfigError, match="n_best must be at most beam, got 5 > 4"):
        validate(Search, {"n_best": 5})


def test_a_length_penalty_that_would_overflow_is_refused() -> None:
    with pytest.raises(ConfigError, match="length_penalty: must be less than or equal to 10, got 1000"):
        validate(Search, {"length_penalty": 1000})
    assert length_penalty(10**6, 10.0) > 1e52


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_an_error(score: float) -> None:
    table = Table({})
    table.rows[2, 3] = score
    with pytest.raises(CheckpointError, match="the model's scores are not numbers"):
        beam_search(table, [6], Search(), bos=BOS, eos=EOS)


def test_no_sentences_are_no_translations() -> None:
    assert beam_search(Table({}), [], Search(), bos=BOS, eos=EOS) == []


def test_rows_of_the_model_that_stand_for_no_token_are_never_drawn() -> None:
    """Beams, too, of one whose likeliest rows all lie beyond the tokenizer's."""
    model = build(0)
    source, valid = padded(SOURCES, 0, 0)
    raw = model.logits
    model.logits = lambda features: raw(features) + 30 * (torch.arange(VOCABULARY) >= VOCABULARY - 2)
    for beam in (1, 3):
        with torch.no_grad():
            scorer = CachedScorer(model, model.encode(source, valid=valid), beam, 8)
            limits = [8] * len(SOURCES)
            found = beam_search(scorer, limits, Search(beam=beam), bos=BOS, eos=EOS, vocab_size=VOCABULARY - 2)
        assert all(token < VOCABULARY - 2 for ((best, *_),) in zip(found, strict=True) for token in best.tokens)
