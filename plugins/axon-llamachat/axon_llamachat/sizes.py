"""Sizes in bytes on the command line."""

from __future__ import annotations

from typing import Any

import click

from axon_core import UsageError
from axon_eet.setup import parse_size

__all__ = ["SIZE"]


class _Size(click.ParamType):
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_size(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


SIZE = _Size()
"""A number of bytes, such as `2GB`."""
