"""The Llama 2 chat format (`axon_xllama.chat`) as a chat template, by which dialogues are learned."""

from __future__ import annotations

from collections.abc import Sequence

from axon_core import config
from axon_core.text import Message as Turn
from axon_core.text import Tokenizer
from axon_xllama.chat import MARKERS, ChatMessage, chat_tokens

__all__ = ["Llama2"]


class Llama2:
    """A dialogue between Llama 2's marks, for any tokenizer with `bos` and `eos`, which are `<s>` and `</s>` here.

    <s>[INST] What is 2 + 2? [/INST] 4 </s>
    """

    markers = MARKERS
    """What no message may contain."""

    class Config(config.Config):
        """There is nothing to choose."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, tokenizer: Tokenizer, messages: Sequence[Turn]) -> list[int]:
        """Return the tokens of a dialogue; one that ends with the user's message is left open, for the model to answer.

        Raises:
            UsageError: a message contains one of the format's markers.
            DataError: the tokenizer has no `bos` or `eos`.
        """
        said = [ChatMessage(message.role, message.content) for message in messages]
        if said[-1].role == "user":
            return chat_tokens(tokenizer, said)
        more = ChatMessage("user", "")  # an answered dialogue is the beginning of one in which the user says more
        return chat_tokens(tokenizer, [*said, more])[: -len(chat_tokens(tokenizer, [more]))]
