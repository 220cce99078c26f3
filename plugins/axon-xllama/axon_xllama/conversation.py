"""A conversation with a model: what has been said, and as much of it as the model's context holds."""

from __future__ import annotations

from collections.abc import Generator

from axon_core.generation import Request, Sampling, check_prompt, decode_requests
from axon_core.interfaces import CausalLM
from axon_core.text import Message, Tokenizer, published_template
from axon_xllama.template import Llama2

__all__ = ["Conversation"]


class Conversation:
    """A conversation in the chat template that the model was published with, or else in Llama 2's format.

    Args:
        model: any causal language model that was tuned on the format.
        tokenizer: its tokenizer, with `bos` and `eos`.
        system: the system message at the start of the conversation.
        sampling: how the answers' tokens are chosen.
        max_new_tokens: the most tokens in an answer.
        seed: equal seeds and messages give equal conversations.
        compile: whether decoding is compiled (`axon_core.generation.api.generate`).

    Attributes:
        messages: what has been said.
        forgotten: how many of the oldest messages were left out of the last prompt, to leave the answer room.

    Raises:
        UsageError: the system's message contains a marker of the format.
        DataError: the tokenizer has no `bos` or `eos`, or cannot encode the system's message.
        ContextError: the system's message is longer than the model's context.
    """

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        *,
        system: str | None = None,
        sampling: Sampling | None = None,
        max_new_tokens: int = 200,
        seed: int = 0,
        compile: bool = False,
    ) -> None:
        self._model, self._tokenizer, self._seed, self._compile = model, tokenizer, seed, compile
        self._sampling, self._max_new_tokens = sampling or Sampling(), max_new_tokens
        self._template = published_template(tokenizer) or Llama2(Llama2.Config())
        self._system = [] if not system else [Message(role="system", content=system)]
        tokens = self._template(tokenizer, [*self._system, Message(role="user", content="a")])
        check_prompt(model, tokens, "the conversation's beginning")  # problems with it show at once
        self.reset()

    def reset(self) -> None:
        """Forget what has been said; the system's message stays."""
        self.messages: list[Message] = []
        self.forgotten = 0

    def ask(self, text: str) -> Generator[str, None, None]:
        """Yield the answer in pieces. It becomes part of the conversation as far as it came, even if it is cut short.

        Raises:
            UsageError: the message contains a marker of the format.
            ContextError: the message alone is longer than the model's context.
        """
        question = Message(role="user", content=text)
        prompt, self.forgotten = self._prompt(question)
        request = Request(
            prompt=prompt,
            sampling=self._sampling,
            max_new_tokens=self._max_new_tokens,
            stop=self._template.markers,  # an answer that contains one would be refused as part of the next prompt
            seed=self._seed + len(self.messages) // 2,
        )
        answer = ""
        try:
            for chunk in decode_requests(self._model, self._tokenizer, [request], compile=self._compile):
                piece = chunk.text if answer else chunk.text.lstrip()
                answer += piece
                if piece:
                    yield piece
        finally:
            if answer:
                self.messages += [question, Message(role="assistant", content=answer)]

    def _prompt(self, question: Message) -> tuple[list[int], int]:
        """Return the conversation's tokens, leaving out as many of its oldest messages as the answer needs."""
        context = self._model.context
        room = context - min(self._max_new_tokens, context // 2)
        tokens, first = list[int](), 0
        for first in range(0, len(self.messages) + 1, 2):
            tokens = self._template(self._tokenizer, [*self._system, *self.messages[first:], question])
            if len(tokens) <= room:
                break
        check_prompt(self._model, tokens, "the message")
        return tokens, first
