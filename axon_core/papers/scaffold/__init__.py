"""Makes a new plugin, a complete project from templates in one new folder, for `axon new`."""

from axon_core.papers.scaffold.draft import placeholders
from axon_core.papers.scaffold.folder import plugin_folder, write
from axon_core.papers.scaffold.naming import KINDS
from axon_core.papers.scaffold.project import Project, render

__all__ = ["KINDS", "Project", "placeholders", "plugin_folder", "render", "write"]
