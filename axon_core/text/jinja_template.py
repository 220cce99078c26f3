"""The chat template that a checkpoint was published with, in Jinja's language, run in a sandbox with limits."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from types import FrameType
from typing import Any, cast

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from axon_core.errors import DataError, UsageError
from axon_core.escaping import shortened
from axon_core.json_text import to_json
from axon_core.text.pipeline_tokenizer import PipelineTokenizer
from axon_core.text.records import Message
from axon_core.text.tokenizer import Tokenizer

__all__ = ["JinjaTemplate", "published_template", "rendered_chat"]

_SECONDS, _CHARACTERS, _TEMPLATE = 2.0, 1 << 22, 1 << 20
"""How long a template may run, and the most characters in what it makes and in the template itself."""


class JinjaTemplate:
    """A chat template in Jinja's language, as `tokenizer_config.json` or a `chat_template.jinja` has it.

    It sees `messages`, `add_generation_prompt`, the markers of the tokenizer (`bos_token`, `eos_token`), and what
    transformers adds: `raise_exception`, `strftime_now`, `tojson` without HTML escapes, loop controls, `generation`
    blocks. `tools` and `documents` are None. It can neither change what it sees nor reach Python's attributes.

    Args:
        source: the template.
        names: the texts of markers by their names, such as `{"bos_token": "<s>"}`.

    Attributes:
        markers: what no message may contain; an answer ends before one.
    """

    def __init__(self, source: str, names: dict[str, str], markers: Sequence[str] = ()) -> None:
        self.source, self.names, self.markers = source, names, tuple(markers)

    def __call__(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of a dialogue; one that ends with the user's message is left open.

        Raises:
            UsageError: a message contains a marker of the tokenizer, or the template refuses the messages.
            DataError: the template is malformed, runs too long, or makes too much.
        """
        for number, message in enumerate(messages, 1):
            if found := [marker for marker in self.markers if marker in message.content]:
                raise UsageError(
                    f"message {number} ({message.role}) contains {shortened(found[0], 60)}, which is a marker of the "
                    "tokenizer; rephrase it"
                )
        said = [{"role": message.role, "content": message.content} for message in messages]
        text = rendered_chat(
            self.source, messages=said, add_generation_prompt=said[-1]["role"] != "assistant", **self.names
        )
        marked = getattr(tokenizer, "encode_marked", tokenizer.encode)
        return cast("list[int]", marked(text))


def published_template(tokenizer: Tokenizer) -> JinjaTemplate | None:
    """Return the chat template that a tokenizer was published with; None if it has none."""
    if not isinstance(tokenizer, PipelineTokenizer) or not tokenizer.chat_template:
        return None
    names = {"bos_token": tokenizer.name(tokenizer.bos), "eos_token": tokenizer.name(tokenizer.eos)}
    return JinjaTemplate(tokenizer.chat_template, names, sorted(tokenizer.special))


def rendered_chat(source: str, **values: Any) -> str:
    """Return what a chat template makes of the values.

    Raises:
        UsageError: the template itself refuses them, with `raise_exception`.
        DataError: it is malformed, reaches for what is forbidden, runs longer than 2 seconds, or makes more than 4 MiB.
    """
    try:
        template = _compiled(source)
        parts, room = list[str](), _CHARACTERS
        with _limited():
            for part in template.generate(tools=None, documents=None, **values):
                parts.append(part)
                room -= len(part)
                if room < 0:
                    raise _Excess(f"makes more than {_CHARACTERS:,} characters")
    except _Refused as error:
        raise UsageError(f"the chat template refuses the messages: {shortened(str(error), 200)}") from None
    except _Excess as error:
        raise DataError(f"the chat template {error}") from None
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise DataError(f"the chat template cannot be used: {shortened(str(error), 200)}") from None
    return "".join(parts)


class _Refused(Exception):
    """What `raise_exception` raises."""


class _Excess(Exception):
    """A limit was passed."""


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's own sandbox, without the operations that make much of little."""

    intercepted_binops = frozenset({"*", "**", "+"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sized = [len(value) for value in (left, right) if isinstance(value, str | list | tuple)]
        counts = [value for value in (left, right) if isinstance(value, int)]
        if operator == "**" or max(map(abs, counts), default=0) > 1 << 62:
            raise _Excess("computes with numbers that are too large")
        if operator == "*" and sized and counts and sized[0] * max(counts) > _CHARACTERS:
            raise _Excess(f"makes a text or list of more than {_CHARACTERS:,} parts")
        if operator == "+" and len(sized) == 2 and sum(sized) > _CHARACTERS:
            raise _Excess(f"makes a text or list of more than {_CHARACTERS:,} parts")
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        padding = isinstance(obj, str) and attr in ("center", "ljust", "rjust", "zfill", "expandtabs", "translate")
        return not padding and super().is_safe_attribute(obj, attr, value)


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}`: what the assistant says; it is rendered as it stands."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return what is between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@cache
def _environment() -> _Sandbox:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
    environment.filters["tojson"] = _tojson
    for name in ("center", "format", "indent", "wordwrap", "xmlattr", "pprint", "random"):
        environment.filters.pop(name)  # that make much of little, or are not in templates
    environment.filters["indent"] = _indented
    environment.globals.update(raise_exception=_raise, strftime_now=lambda style: datetime.now().strftime(style))  # pyright: ignore
    return environment


@cache
def _compiled(source: str) -> Any:
    if len(source) > _TEMPLATE:
        raise _Excess(f"has {len(source):,} characters, more than {_TEMPLATE:,}")
    return _environment().from_string(source)


def _raise(message: object) -> None:
    raise _Refused(str(message))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON without HTML escapes, as transformers does."""
    if indent is not None and not 0 <= int(indent) <= 16:
        raise _Excess("indents by more than 16 characters")
    return to_json(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _indented(text: str, width: int = 4, first: bool = False, blank: bool = False) -> str:
    """Indent the lines of a text, as Jinja's filter does."""
    if not 0 <= int(width) <= 64:
        raise _Excess("indents by more than 64 characters")
    space = " " * int(width)
    head, *rest = str(text).splitlines() or [""]
    return "\n".join([space * first + head, *(space + line if line or blank else line for line in rest)])


def _length(value: Any) -> int:
    """Return the length of a text or list, or of the longest in a `namespace`."""
    if isinstance(value, Namespace):
        attributes: dict[str, Any] = object.__getattribute__(value, "_Namespace__attrs")
        return max(map(_length, attributes.values()), default=0)
    return len(cast("str", value)) if isinstance(value, str | list) else 0


@contextmanager
def _limited() -> Generator[None]:
    """Within the block, raise `_Excess` once it has run for `_SECONDS`, or a text of the template grows too long."""
    end = time.monotonic() + _SECONDS

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename != "<template>":
            return None  # nothing of Jinja's own code is slow
        if event == "line":
            if time.monotonic() > end:
                raise _Excess(f"runs for more than {_SECONDS:g} seconds")
            if any(_length(value) > _CHARACTERS for value in frame.f_locals.values()):
                raise _Excess(f"makes a text or list of more than {_CHARACTERS:,} parts")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
