"""`axon new`."""

from __future__ import annotations

from pathlib import Path

import click

from axon_core.cli.output import echo
from axon_core.papers.scaffold import KINDS, Project, plugin_folder, render, write


@click.command("new")
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), required=True, help="What the plugin adds.")
@click.option("--arxiv", metavar="ID", help="The paper's arXiv id, without the version.")
@click.option("--title", help="The paper's title; by default made from the name.")
@click.option("--out", type=click.Path(path_type=Path), help="The folder to create; by default axon-NAME.")
def command(name: str, kind: str, arxiv: str | None, title: str | None, out: Path | None) -> None:
    """Start the plugin axon-NAME for a paper: a small working part with its card, tests and documentation.

    In Axon's repository the plugin is the folder plugins/axon-NAME; elsewhere it is a standalone project. No file
    outside the new folder changes, and no existing file is overwritten.
    """
    project = Project(name, kind, title, arxiv)
    target, standalone = plugin_folder(project.distribution, out, Path.cwd())
    files = render(project, standalone=standalone)
    write(files, target)
    here = Path.cwd()
    shown = target.relative_to(here) if target.is_relative_to(here) else target
    steps = [
        f'pip install -e "{shown}{"[test]" if standalone else ""}"',
        f"axon check {project.distribution}",
        f"axon reproduce {name}",
        *([f"pip install {project.needs}"] if project.needs else []),
        project.train,
    ]
    echo("\n  ".join([f"Wrote {len(files)} files to {shown}. Try it, then make it the paper's:", *steps]))
