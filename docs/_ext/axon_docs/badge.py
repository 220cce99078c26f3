"""A badge as SVG: a label and a value side by side, drawn without a network or a font's measures."""

from __future__ import annotations

from xml.sax.saxutils import escape, quoteattr

from axon_core.escaping import printable

GREEN, YELLOW, RED, GREY = "#2e7d32", "#8d6e00", "#b3261e", "#5f6368"
"""Colours on which white text has a contrast of at least 4.5."""
_CHARACTER, _PADDING, _HEIGHT = 6.6, 8, 20


def badge(label: str, value: str, colour: str) -> str:
    """Return a badge that says `label` and, on the `colour`, `value`; both may be any text.

    The width is that of the characters in a monospaced font, to which each text is stretched, so that it fits in any.

    >>> "claims 4/4 reproduced" in badge("claims", "4/4 reproduced", GREEN)
    True
    """
    texts = [printable(text, line=True) for text in (label, value)]
    left, right = (round(_CHARACTER * len(text) + 2 * _PADDING) for text in texts)
    width, name = left + right, quoteattr(" ".join(texts))
    shown = "".join(
        f'<text x="{start + _PADDING}" y="14" textLength="{max(size - 2 * _PADDING, 1)}" '
        f'lengthAdjust="spacingAndGlyphs">{escape(text)}</text>'
        for start, size, text in ((0, left, texts[0]), (left, right, texts[1]))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{_HEIGHT}" role="img" aria-label={name}>'
        f'<rect width="{left}" height="{_HEIGHT}" fill="#444"/>'
        f'<rect x="{left}" width="{right}" height="{_HEIGHT}" fill={quoteattr(colour)}/>'
        f'<g fill="#fff" font-family="DejaVu Sans Mono,Menlo,Consolas,monospace" font-size="11">{shown}</g></svg>\n'
    )
