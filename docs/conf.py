"""Sphinx's settings. Nothing is fetched, neither to build the pages nor to read them."""

import sys
from importlib.metadata import version as _version
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

project = "Axon"
author = copyright = "The Axon authors"
version = release = _version("axon-core")
sys.path.insert(0, str(Path(__file__).parent / "_ext"))
extensions = ["myst_parser", "axon_docs.typeset"]
html_math_renderer = "mathml"
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["axon.css", "pseudocode.css"]
html_title = f"Axon {release}"
source_suffix = {".md": "markdown"}
add_module_names = False
python_maximum_signature_line_length = 80
suppress_warnings = [
    "misc.highlighting_failure",  # usage lines and fragments of recipes are not complete programs
]
# A signature names types of Python, torch and pydantic, which have pages elsewhere, and shapes, which have none.
nitpick_ignore_regex = [(r"py:.*", r"(?!axon_).*")]
python_use_unqualified_type_names = True


def exact(app: Sphinx, doctree: nodes.document) -> None:
    """Look a name in an annotation up as it stands: Sphinx would take any name anywhere that ends like it.

    Its domain asks whether `refspecific` is set, not whether it is true, and a type in a signature always sets it.
    """
    for reference in doctree.findall(pending_xref):
        if not reference.get("refspecific", True):
            del reference["refspecific"]


def setup(app: Sphinx) -> None:
    """Connect to Sphinx."""
    app.connect("doctree-read", exact)
