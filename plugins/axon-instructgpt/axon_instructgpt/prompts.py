"""Prompts from a file, each with the name it has in messages."""

from __future__ import annotations

from pydantic import BaseModel

from axon_core.config import validate
from axon_core.errors import ConfigError, DataError
from axon_core.records import Text, read_json_lines

__all__ = ["read_prompts"]


class _Line(BaseModel, strict=True):
    prompt: Text


def read_prompts(path: str) -> list[tuple[str, str]]:
    """Return the prompts of a file of JSON lines, each once, after what to call its line; other fields are passed over.

    Raises:
        DataError: the file cannot be read or is empty, or a line has no prompt.
    """
    found: dict[str, str] = {}
    for place, value in read_json_lines(path):
        try:
            found.setdefault(validate(_Line, value).prompt, place)
        except ConfigError as error:
            raise DataError(f"{place} is no prompt: {error}; correct the line, or remove it") from None
    if not found:
        raise DataError(f"{path} holds no prompt; write one a line")
    return [(place, prompt) for prompt, place in found.items()]
