"""Text in, translations out: many sentences at once, those of similar length together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import torch

from axon_core import ContextError, DataError
from axon_core.checkpoint import check_vocabulary
from axon_core.generation import evaluation_mode
from axon_core.nn import compile_kernels, pack_products, quantize
from axon_core.text import Tokenizer
from axon_transformer.averaging import average
from axon_transformer.batches import pad
from axon_transformer.corpus import normalised
from axon_transformer.data import markers, valid_tokens
from axon_transformer.model import Transformer
from axon_transformer.search import CachedScorer, Hypothesis, Search, beam_search

__all__ = ["Translation", "Translator"]


class Translation(NamedTuple):
    """One translation of a sentence."""

    text: str
    """The translation, on one line; for an empty sentence, empty."""
    tokens: list[int]
    """Its tokens, without markers."""
    logprob: float
    """Log-probability under the model, in nats."""
    score: float
    """Log-probability over length penalty, by which translations are ranked."""
    ended: bool
    """Whether the model ended it, rather than it being cut off at the limit."""


class Translator:
    """A model and the tokenizer it was trained with.

    A sentence's translation does not depend on the others: not a bit of it with a packed model (`pack_products`), whose
    parts use the core's linear maps, norms and attention, and otherwise up to the rounding of a matrix product, which
    may depend on the number of rows.

    Args:
        model: any Transformer.
        tokenizer: the one it was trained with.

    Raises:
        CheckpointError: the tokenizer has more tokens than the model.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer) -> None:
        check_vocabulary(tokenizer, model.config.vocab_size)
        self.model = model
        self.tokenizer = tokenizer
        self.bos, self.eos = markers(tokenizer)

    @classmethod
    def load(cls, *folders: Path | str, device: str = "cpu", quantization: str | None = None) -> Self:
        """Load model and tokenizer from a folder; from several, the mean of the models. It computes on `device`.

        With a `quantization`, such as "int8", the weights of all linear maps, the output's included, have few bits. On
        a CPU the model is packed (`pack_products`) and can be neither trained nor saved. The first call ever
        compiles the core's kernels, in some seconds; without a C++ compiler, a warning says that it stays as it is.

        Raises:
            CheckpointError: a folder has no model or tokenizer, it is damaged, or the models are not of one size.
            UnknownKey: there is no such quantisation.
        """
        model = average([Transformer.load(folder) for folder in folders]).to(device)
        tokenizer = Tokenizer.load(folders[0])
        check_vocabulary(tokenizer, model.config.vocab_size)
        if quantization is not None:
            model = quantize(model, quantization)
        weight = model.embedding.weight
        if weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16) and compile_kernels():
            model = pack_products(model)
        return cls(model, tokenizer)

    def encode(self, texts: Sequence[str], place: Callable[[int], str] = "sentence {}".format) -> list[list[int]]:
        """Return the source tokens of each text; for an empty one, none.

        `place` names a text, counted from 1, for messages.

        Raises:
            DataError: a text cannot be encoded.
            ContextError: texts are longer than the model's context; the message counts them and names the first.
        """
        sources: list[list[int]] = []
        for text in map(normalised, texts):
            try:
                sources.append(self.tokenizer.encode(text, eos=True) if text else [])
            except DataError as error:
                raise DataError(f"{place(len(sources) + 1)}: {error}") from None
        context = self.model.config.context
        if long := [i for i, source in enumerate(sources) if len(source) > context]:
            first = long[0]
            more = f", and {len(long):,} are too long in all" if long[1:] else ""
            raise ContextError(
                f"{place(first + 1)} has {len(sources[first]):,} tokens, but the model takes at most {context}{more}; "
                "split it into sentences. Nothing was translated"
            )
        return sources

    def translate(
        self,
        texts: Sequence[str],
        search: Search | None = None,
        *,
        batch_size: int = 64,
        place: Callable[[int], str] = "sentence {}".format,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[list[Translation]]:
        """Return the `search.n_best` best translations of each text, best first.

        Args:
            texts: sentences; white space at their ends, and the length of its runs, are ignored.
            search: how to search.
            batch_size: how many sentences are translated at once.
            place: names a text, counted from 1, for messages.
            progress: called at the start and after each batch with the number of texts done, and of all.

        Raises:
            DataError: a text cannot be encoded.
            ContextError: a text is longer than the model's context.
            CheckpointError: the model's scores are not numbers.
        """
        search = search or Search()
        sources = self.encode(texts, place)
        result = [[Hypothesis([], 0.0, 0.0, True)] for _ in texts]
        # The longest first, so that running out of memory shows at once.
        order = sorted((i for i, source in enumerate(sources) if source), key=lambda i: -len(sources[i]))
        done = len(texts) - len(order)
        progress(done, len(texts))
        with evaluation_mode(self.model):
            for start in range(0, len(order), batch_size):
                numbers = order[start : start + batch_size]
                found = self._search([sources[i] for i in numbers], search)
                for i, hypotheses in zip(numbers, found, strict=True):
                    result[i] = hypotheses
                done += len(numbers)
                progress(done, len(texts))
        return [[Translation(self._text(one.tokens), *one) for one in each] for each in result]

    def _text(self, tokens: Sequence[int]) -> str:
        """Return the text of a translation, white space as in the targets of training: no line breaks or tabs."""
        return normalised(self.tokenizer.decode(tokens))

    @torch.inference_mode()
    def _search(self, sources: Sequence[list[int]], search: Search) -> list[list[Hypothesis]]:
        model = self.model
        rows = pad(sources).to(model.embedding.weight.device)
        memory = model.encode(rows, valid=valid_tokens(rows))
        limits = [min(len(source) + search.longer, model.config.context) for source in sources]
        scorer = CachedScorer(model, memory, search.beam, max(limits))
        size = self.tokenizer.vocab_size
        return beam_search(scorer, limits, search, bos=self.bos, eos=self.eos, vocab_size=size)
