"""The options of a recipe's table `data` that every trainer shares whose data are rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import Field, field_validator

from axon_core.config import Config, at
from axon_core.registry.spec import Spec
from axon_core.text.chat_template import CHAT_TEMPLATES, ChatTemplate
from axon_core.text.jinja_template import published_template
from axon_core.text.schemas.known import SCHEMAS
from axon_core.text.tokenizer import Tokenizer

__all__ = ["RowsConfig"]

_NAMES = sorted(schema.name for schema in SCHEMAS)
_FIELDS = sorted({name for schema in SCHEMAS for name in schema.fields})


class RowsConfig(Config):
    """How rows are read, and how the dialogues in them become tokens."""

    fields: dict[str, str] = Field(default_factory=dict)
    """What the rows call Axon's fields, as in `{prompt = "question", completion = "answer"}`; left out, the schema is
    recognised by the fields that the rows have."""
    format: str | None = None
    """The schema of the rows, such as `alpaca`, where they have the fields of several."""
    skip_invalid: bool = False
    """Leave out rows of the schema that break one of its rules, and say how many, instead of refusing the file."""
    validation: float | None = Field(default=None, gt=0, lt=1)
    """The share of the rows to train on, at their end, that is not trained on either and that evaluation reads instead
    of those held out, which then take no part: to choose settings by. Left out, none."""
    template: Spec | None = None
    """How dialogues become tokens, by `type`; left out, as the model was published with, or else `plain`."""

    @field_validator("fields")
    @classmethod
    def _known_fields(cls, fields: dict[str, str]) -> dict[str, str]:
        if unknown := next((name for name in fields if name not in _FIELDS), None):
            raise ValueError(f"must map names of {', '.join(_FIELDS)}, got {unknown!r}")
        return fields

    @field_validator("format")
    @classmethod
    def _known_format(cls, format: str | None) -> str | None:
        if format is not None and format not in _NAMES:
            raise ValueError(f"must be one of {', '.join(_NAMES)}, got {format!r}")
        return format

    def check_template(self) -> None:
        """Raise `UnknownKey` or `ConfigError` if the table names a template that there is not, or with wrong options.

        The default template is looked up only where a row needs one.
        """
        if self.template is not None:
            with at("template"):
                CHAT_TEMPLATES.config(self.template)

    def chat_template(self, records: Iterable[Any], tokenizer: Tokenizer) -> ChatTemplate | None:
        """Return the template for a model, or None if no record has messages.

        Without a choice it is the one that `axon chat` then writes dialogues in, if the model was published with one.

        Raises:
            UnknownKey: as `check_template` does.
        """
        if not any(_has_messages(record) for record in records):
            return None
        if self.template is None and (published := published_template(tokenizer)):
            return published
        with at("template"):
            return CHAT_TEMPLATES.build(self.template or Spec(type="plain"))


def _has_messages(record: Any) -> bool:
    return hasattr(record, "messages") or not isinstance(getattr(record, "prompt", ""), str)
