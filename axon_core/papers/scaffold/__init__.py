"""Makes a new plugin, a complete project from templates in one new folder, for `axon new`."""

from axon_core.papers.scaffold.draft import placeholders
from axon_core.papers.scaffold.folder import place, write
from axon_core.papers.scaffold.naming import KINDS
from axon_core.papers.scaffold.project import Project, render

__all__ = ["KINDS", "Project", "place", "placeholders", "render", "write"]
