"""Comparisons as tokens: read, checked, split, and sampled in an order that can be resumed at any step."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from axon_core import AxonError, DataError, validate
from axon_core.alignment import Sequences, encode_replies
from axon_core.checkpoint import digest
from axon_core.text import (
    ChatTemplate,
    Comparison,
    Ranking,
    RowsConfig,
    Tokenizer,
    line_names,
    read_comparisons,
    split_records,
)
from axon_dpo.raters import StatedPreference, number_raters, rater_column

__all__ = ["Pairs", "PreferenceConfig", "PreferenceData"]


class PreferenceConfig(RowsConfig):
    """The `[data]` table of a recipe whose data are comparisons."""

    path: str
    """Rows of `{"prompt", "chosen", "rejected"}` or of another known schema: JSON lines, also as `.gz`, a `.json`
    array, or parquet; `~` and `$VARIABLES` are filled in.

    A `margin` is not used by this paper's losses. A ranking counts as all its pairs. Either all rows name their
    `rater`, or none does."""
    held_out: float = Field(default=0.1, gt=0, lt=1)
    """The share of the comparisons, at the file's end, that is held out of training and used for evaluation."""


class Pair(NamedTuple):
    """The tokens of one comparison."""

    name: str
    """What to call it in a message."""
    prompt: list[int]
    """What both texts begin with."""
    chosen: list[int]
    """How the preferred text continues."""
    rejected: list[int]
    """How the other text continues."""
    rater: int | None = None
    """The number of who said so, if the data name their raters."""


class Pairs(tuple[Pair, ...]):
    """Comparisons, ready for a model."""

    def rows(self, picks: Iterable[int]) -> dict[str, Int[Tensor, "b ..."]]:
        """Return `tokens`, `valid` and `scored` (`Sequences`) of some comparisons, the chosen text before the other.

        If the data name their raters, `rater` `(b)` is the number of each one's.
        """
        pairs = [self[i] for i in picks]
        both = [(pair.prompt, text) for pair in pairs for text in (pair.chosen, pair.rejected)]
        rows = {name: rows.unflatten(0, (-1, 2)) for name, rows in vars(Sequences.of(both)).items()}
        return {**rows, **rater_column(pair.rater for pair in pairs)}

    def judgements(self) -> Generator[StatedPreference]:
        """Yield who preferred what; all are by one rater if the data do not name theirs."""
        for pair in self:
            better, worse = ((*pair.prompt, -1, *text) for text in (pair.chosen, pair.rejected))
            yield StatedPreference(pair.name, pair.rater or 0, better, worse)


@dataclass(frozen=True)
class PreferenceData:
    """Comparisons as tokens: those to train on and those held out.

    Attributes:
        tokenizer: what turned the texts into tokens.
        train: the first of them.
        held_out: the rest.
        raters: the names of those who compared, by number; empty if the data do not name them.
    """

    tokenizer: Tokenizer
    train: Pairs
    held_out: Pairs
    raters: tuple[str, ...] = ()

    @classmethod
    def load(cls, settings: PreferenceConfig, tokenizer: Tokenizer, context: int) -> Self:
        """Read a file, then continue as `of` does. Also raises `DataError` if a line is not a comparison."""
        records = read_comparisons(settings.path, settings)
        named = zip(line_names(records, settings.path), records, strict=True)
        pairs = [(name, pair) for name, record in named for pair in _pairs(record)]
        names, comparisons = [name for name, _ in pairs], [pair for _, pair in pairs]
        template = settings.chat_template(records, tokenizer)
        return cls.of(comparisons, tokenizer, context, settings.held_out, names, template, settings.validation)

    @classmethod
    def of(
        cls,
        records: Sequence[Comparison],
        tokenizer: Tokenizer,
        context: int,
        held_out: float = 0.1,
        names: Sequence[str] | None = None,
        template: ChatTemplate | None = None,
        validation: float | None = None,
    ) -> Self:
        """Tokenize comparisons and split them; at least one is held out.

        A text ends with `eos` if the tokenizer has one and the text is not `unfinished`; it counts like any other
        token.

        Args:
            records: the comparisons.
            tokenizer: the models' own.
            context: the most tokens a model can take.
            held_out: the share of them, at their end, that is held out of training.
            names: what to call each in messages; by default "comparison" and its number, counted from 1.
            template: what renders prompts that are messages, and the answers to them.
            validation: the share of the rest that is held out instead, the first share left out.

        Raises:
            DataError: a text cannot be encoded, both are the same tokens, there are fewer than two comparisons, or
                some name their rater and others do not.
            ContextError: a prompt and its continuation are longer than the context.
        """
        names = names or [f"comparison {i}" for i in range(1, len(records) + 1)]
        raters, numbers = number_raters(records, names)
        pairs = [
            _encoded(record, tokenizer, template, name)._replace(rater=number)
            for record, name, number in zip(records, names, numbers, strict=True)
        ]
        train, rest = split_records(pairs, held_out, "comparisons", validation)
        for pair in pairs:
            Sequences.of(
                ((pair.prompt, text) for text in (pair.chosen, pair.rejected)), context=context, names=[pair.name] * 2
            )
        return cls(tokenizer, Pairs(train), Pairs(rest), raters)

    @property
    def digest(self) -> str:
        """A checksum that changes with the comparisons or their tokens."""
        parts = (self.train, self.held_out)
        rated = [(self.raters, [[pair.rater for pair in part] for part in parts])] if self.raters else []
        return digest(*([pair[1:4] for pair in part] for part in parts), *rated)


def _pairs(record: Comparison | Ranking) -> list[Comparison]:
    """Return the comparisons in a record; of a ranking all pairs, the best first."""
    if isinstance(record, Comparison):
        return [record]
    found = list[Comparison]()
    for better, worse in record.pairs():
        both = {"chosen": record.responses[better], "rejected": record.responses[worse]}
        cut_off = [name for name, i in zip(both, (better, worse), strict=True) if i in record.unfinished]
        rest = {"unfinished": cut_off, "rater": record.rater}
        found.append(validate(Comparison, {"prompt": record.prompt, **both, **rest}))
    return found


def _encoded(record: Comparison, tokenizer: Tokenizer, template: ChatTemplate | None, name: str) -> Pair:
    both = [
        (text, name not in record.unfinished)
        for name, text in (("chosen", record.chosen), ("rejected", record.rejected))
    ]
    try:
        prompt, (chosen, rejected) = encode_replies(record.prompt, both, tokenizer, template)
    except AxonError as error:
        raise DataError(f"{name}: {error}") from None
    if chosen == rejected:
        raise DataError(f"{name}: chosen and rejected must differ, but their tokens are the same; remove it")
    return Pair(name, prompt, chosen, rejected)
