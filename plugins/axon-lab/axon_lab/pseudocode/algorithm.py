"""An algorithm of a page: numbered steps, each with the lines of Axon's source that do it. One TOML file holds each."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt, StringConstraints

from axon_core import config

__all__ = ["Anchor", "NumberedStep", "PseudocodeAlgorithm", "load_algorithms"]

_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Anchor(config.Config):
    """Lines of source, named by the definition that they stand in and by their text, and by no number."""

    at: Annotated[str, StringConstraints(pattern=r"^axon_\w+(\.\w+)*:\w+(\.\w+)*$")]
    """The definition: `module:qualified name`, as in `axon_core.nn.attention:QKV.forward`."""
    lines: _Text
    """The whole text of one or several adjacent lines, without their indentation."""


class NumberedStep(config.Config):
    """One numbered line of pseudocode."""

    text: _Text
    """The line, in Unicode: `W_{e}` is a subscript and `Y^{h}` a superscript."""
    indent: NonNegativeInt = 0
    """How many loops it stands in."""
    note: str = ""
    """What differs between the line and the code."""
    code: tuple[Anchor, ...] = Field(min_length=1)
    """The source that does it."""


class PseudocodeAlgorithm(config.Config):
    """An algorithm with its source, its inputs and its steps. Notation: arXiv 2207.09238."""

    id: Annotated[str, StringConstraints(pattern=r"^[a-z]+(-[a-z]+)*$")]
    """Its name, as the page's: `token-embedding`."""
    order: PositiveInt
    """Its place in the presentation."""
    title: _Text
    """Its title."""
    call: _Text
    """Its signature: `e ← Embedding(v | W_{e})`."""
    source: _Text
    """Where it is stated: arXiv id, with section, equation or algorithm."""
    about: _Text
    """What it is for, and how it differs from its source."""
    inputs: tuple[_Text, ...]
    """What it takes."""
    output: _Text
    """What it returns."""
    parameters: tuple[_Text, ...] = ()
    """What is learned or chosen."""
    part: _Text
    """The registered part that it is compared with: `ATTENTIONS["MHA"]`."""
    transcription: _Text
    """The function of the module `transcriptions` that does the same."""
    step: tuple[NumberedStep, ...] = Field(min_length=1)
    """Its steps; the first has number 1."""


@cache
def load_algorithms() -> tuple[PseudocodeAlgorithm, ...]:
    """Return the algorithms of the presentation, in its order.

    Raises:
        pydantic.ValidationError: a file of the package breaks a rule.
    """
    found = [
        PseudocodeAlgorithm.model_validate(tomllib.loads(file.read_text("utf-8-sig")))
        for file in (files("axon_lab.pseudocode") / "algorithms").iterdir()
        if file.name.endswith(".toml")
    ]
    return tuple(sorted(found, key=lambda algorithm: algorithm.order))
