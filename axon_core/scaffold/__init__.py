"""A new plugin: a complete project from templates, in one new folder. It is what `axon new` does."""

from axon_core.scaffold.draft import placeholders
from axon_core.scaffold.folder import place, write
from axon_core.scaffold.naming import KINDS
from axon_core.scaffold.project import Project, render

__all__ = ["KINDS", "Project", "place", "placeholders", "render", "write"]
