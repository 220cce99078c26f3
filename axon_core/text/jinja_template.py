"""The chat template that a checkpoint was published with: dialogues become tokens, and no message becomes a marker."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import cast

from axon_core.errors import UsageError
from axon_core.escaping import shortened
from axon_core.text.pipeline_tokenizer import PipelineTokenizer
from axon_core.text.records import Message
from axon_core.text.template_sandbox import rendered_chat
from axon_core.text.tokenizer import Tokenizer

__all__ = ["JinjaTemplate", "published_template"]

_HARMLESS = "\ufffd"


class JinjaTemplate:
    """A chat template in Jinja's language, as `tokenizer_config.json` or a `chat_template.jinja` has it.

    It sees `messages`, `add_generation_prompt`, the markers of the tokenizer (`bos_token`, `eos_token`), and what
    transformers adds: `raise_exception`, `strftime_now`, `tojson` without HTML escapes, loop controls, `generation`
    blocks. `tools` and `documents` are None. It can neither change what it sees nor reach Python's attributes, and it
    may use only what templates of published models need; time and memory are limited.

    No text of a message becomes a marker. A message of the user or the system with the text of any is refused. The
    assistant's may have those in `model_markers`, which the model writes itself, such as `<think>`: in its own earlier
    answer they are the ids that it wrote. A message that becomes a marker only in the template, which may leave out
    or change parts of it, is refused too.

    Args:
        source: the template.
        names: the texts of markers by their names, such as `{"bos_token": "<s>"}`.

    Attributes:
        markers: what no message may contain; an answer ends before one.
        model_markers: what only the assistant's messages may contain.
    """

    def __init__(
        self,
        source: str,
        names: dict[str, str],
        markers: Sequence[str] = (),
        model_markers: Sequence[str] = (),
    ) -> None:
        self.source, self.names = source, names
        self.markers, self.model_markers = tuple(markers), tuple(model_markers)

    def __call__(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of a dialogue; one that ends with the user's message is left open.

        Raises:
            UsageError: a message contains a marker of the tokenizer or becomes one, or the template refuses the
                messages.
            DataError: the template is malformed, uses what it may not, runs too long, or makes too much.
        """
        for number, message in enumerate(messages, 1):
            refused = (*self.markers, *(() if message.role == "assistant" else self.model_markers))
            if found := [marker for marker in refused if marker in message.content]:
                raise UsageError(
                    f"message {number} ({message.role}) contains {shortened(found[0], 60)}, which is a marker of the "
                    "tokenizer; rephrase it"
                )
        tokens = self._tokens(tokenizer, messages)
        harmless = [self._harmless(message) for message in messages]
        if harmless != [*messages]:
            self._check(tokenizer, tokens, self._tokens(tokenizer, harmless))
        return tokens

    def _tokens(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
        said = [{"role": message.role, "content": message.content} for message in messages]
        text = rendered_chat(
            self.source, messages=said, add_generation_prompt=said[-1]["role"] != "assistant", **self.names
        )
        marked = getattr(tokenizer, "encode_marked", tokenizer.encode)
        return cast("list[int]", marked(text))

    def _check(self, tokenizer: Tokenizer, tokens: Sequence[int], expected: Sequence[int]) -> None:
        """Raise `UsageError` if `tokens` have more of a marker than those of the same messages made harmless."""
        ids: Mapping[str, int] = getattr(tokenizer, "markers", {})
        more = Counter(tokens) - Counter(expected)
        if found := [text for text in (*self.markers, *self.model_markers) if ids.get(text) in more]:
            raise UsageError(
                f"a message becomes {shortened(found[0], 60)}, a marker of the tokenizer, in the chat template; "
                "rephrase it"
            )

    def _harmless(self, message: Message) -> Message:
        """Return the message without the characters that markers begin with, but with those that it may contain."""
        first = {character for marker in (*self.markers, *self.model_markers) for character in _forms(marker[0])}
        begin = [character for character in {*message.content} if not first.isdisjoint(_forms(character))]
        if not begin:
            return message
        kept = self.model_markers if message.role == "assistant" else ()
        pattern = "|".join(map(re.escape, [*sorted(kept, key=len, reverse=True), *begin]))
        content = re.sub(pattern, lambda found: found[0] if found[0] in kept else _HARMLESS, message.content)
        return message.model_copy(update={"content": content})


def published_template(tokenizer: Tokenizer) -> JinjaTemplate | None:
    """Return the chat template that a tokenizer was published with; None if it has none.

    Its `markers` are the tokenizer's special ones, and its `model_markers` the others, except letters.
    """
    if not isinstance(tokenizer, PipelineTokenizer) or not tokenizer.chat_template:
        return None
    names = {"bos_token": tokenizer.name(tokenizer.bos), "eos_token": tokenizer.name(tokenizer.eos)}
    others = sorted(text for text in tokenizer.markers.keys() - tokenizer.special if not _is_word(text))
    return JinjaTemplate(tokenizer.chat_template, names, sorted(tokenizer.special), others)


def _is_word(text: str) -> bool:
    """Whether an added token that is not special is a part of ordinary texts, as `ö` in DeepSeek's tokenizers."""
    return text.isalpha() or len(text) == 1


def _forms(character: str) -> Collection[str]:
    """Return a character and what a tokenizer's normaliser may make of it."""
    return {character, *unicodedata.normalize("NFKC", character).casefold()}
