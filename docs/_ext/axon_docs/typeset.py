"""Sphinx's equations as MathML: nothing is fetched, and no script runs.

Its own renderers need a network (MathJax) or an installation of LaTeX (imgmath). A font with mathematical tables is
shipped with the pages, STIX Two Math, because few systems have one.
"""

from __future__ import annotations

import shutil
from importlib.resources import as_file, files
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import SphinxError
from sphinx.writers.html5 import HTML5Translator

from axon_docs.mathml import mathml

FONT = "STIXTwoMath-Regular.ttf"
"""The font of the equations, which the package ziamath carries."""


def _written(translator: HTML5Translator, node: nodes.Element, display: bool) -> None:
    try:
        translator.body.append(mathml(node.astext(), display))
    except ValueError as error:
        raise SphinxError(str(error)) from error
    raise nodes.SkipNode


def _inline(translator: HTML5Translator, node: nodes.Element) -> None:
    _written(translator, node, display=False)


def _block(translator: HTML5Translator, node: nodes.Element) -> None:
    translator.body.append('<div class="equation">')
    try:
        _written(translator, node, display=True)
    finally:
        translator.body.append("</div>\n")


def _font(app: Sphinx, error: Exception | None) -> None:
    if error is None:
        with as_file(files("ziamath") / "fonts" / FONT) as font:
            shutil.copy(font, Path(app.outdir) / "_static" / FONT)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer `mathml`."""
    app.connect("build-finished", _font)
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
