"""Equations as MathML, which browsers typeset themselves."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from latex2mathml.converter import convert

__all__ = ["mathml"]

# latex2mathml makes a function's name an operator, with spaces on both sides, or leaves no space at all. It is a name;
# TeX leaves a thin space after it unless a bracket follows.
_NAME = re.compile(r"<m[io]>([A-Za-z]{2,})</m[io]>(?P<next><m(?:i|n|sub|sup|frac|sqrt|row><mi))?")


def mathml(latex: str, display: bool) -> str:
    r"""Return an equation in LaTeX as MathML, in a line of its own if `display`.

    >>> mathml(r"x^2", display=False).partition("<mrow>")[2]
    '<msup><mi>x</mi><mn>2</mn></msup></mrow></math>'

    Raises:
        ValueError: it cannot be converted. latex2mathml 3.81 writes an environment that it does not know, such as
            `aligned`, as letters with a bare `&` between them, which is not XML, and an unknown command as its name.
    """
    made = convert(latex, display="block" if display else "inline")
    try:
        tree = ElementTree.fromstring(made)
    except ElementTree.ParseError as error:
        raise ValueError(f"the equation {latex!r} does not become MathML: {error}") from None
    if unknown := [part.text for part in tree.iter() if (part.text or "").startswith("\\")]:
        raise ValueError(f"the equation {latex!r} has commands that do not become MathML: {', '.join(unknown)}")
    return _NAME.sub(_named, made)


def _named(match: re.Match[str]) -> str:
    space = '<mspace width="0.167em" />' if match["next"] else ""
    return f"<mi>{match[1]}</mi>{space}{match['next'] or ''}"
