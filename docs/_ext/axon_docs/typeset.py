"""Sphinx's equations as MathML: nothing is fetched, and no script runs.

Its own renderers need a network (MathJax) or an installation of LaTeX (imgmath).
"""

from __future__ import annotations

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import SphinxError
from sphinx.writers.html5 import HTML5Translator

from axon_docs.mathml import mathml


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


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer `mathml`."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
