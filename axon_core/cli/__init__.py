"""The command `axon`; each subcommand is a module of this package, or a plugin's, imported when it is run."""

from axon_core.cli.app import main

__all__ = ["main"]
