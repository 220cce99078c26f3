"""Text from files and models, made fit to be printed or put into a page."""

from __future__ import annotations

import html
import re

__all__ = ["in_markdown", "printable", "printable_json", "shortened"]

# Control characters but newline and tab (carriage return too, which overwrites a line), separators that some terminals
# break lines at, marks that reverse the order of what follows, and halves of surrogate pairs, which no encoding has.
_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_MARKUP = re.compile(r"[\\`*\[\]|~$]|(?<!\w)_|_(?!\w)")


def printable(text: str, *, line: bool = False) -> str:
    r"""Return `text` with what would control a terminal written as in Python: `\x1b` for an escape.

    A file name, a title or a model's output can then neither colour nor overwrite what is on the screen, nor reverse
    its order. Newlines and tabs stay, and so do all letters, marks, signs and emoji.

    Args:
        text: any text.
        line: whether it must stay on one line, as in a cell of a table: newlines and tabs are escaped too.

    >>> printable("safe\x1b[2J")
    'safe\\x1b[2J'
    """
    text = _UNFIT.sub(lambda found: ascii(found[0])[1:-1], text)
    return text.replace("\n", "\\n").replace("\t", "\\t") if line else text


def printable_json(text: str) -> str:
    r"""Return JSON with the same characters escaped as in JSON, so that it still means the same.

    >>> printable_json('"\u202e"')
    '"\\u202e"'
    """
    return _UNFIT.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def shortened(text: str, most: int) -> str:
    """Return `text` with its middle left out if it has more than `most` characters.

    >>> shortened("a message of many words", 15)
    'a messag… words'
    """
    if len(text) <= most:
        return text
    end = most // 3
    return f"{text[: most - end - 2]}… {text[len(text) - end :].lstrip()}"


def in_markdown(text: str) -> str:
    r"""Return `text` as one line of Markdown that reads as it is: no HTML, no link, no formatting, no table's border.

    >>> in_markdown("<script>alert(1)</script> *x*")
    '&lt;script&gt;alert(1)&lt;/script&gt; \\*x\\*'
    """
    return _MARKUP.sub(r"\\\g<0>", html.escape(printable(text, line=True), quote=False))
