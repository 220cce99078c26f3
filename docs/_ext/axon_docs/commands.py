"""The command line reference, from the click commands themselves."""

from __future__ import annotations

import click

from axon_core.cli.app import cli
from axon_docs.docstrings import markdown


def page() -> str:
    """Return the page of all commands, the core's and the plugins', as MyST Markdown."""
    context = click.Context(cli, info_name="axon")
    lines = ["# Command line", "", "`--help` after any command shows what stands here.", ""]
    for name in cli.list_commands(context):
        if command := cli.get_command(context, name):
            lines += section(command, click.Context(command, info_name=name, parent=context))
    return "\n".join(lines)


def section(command: click.Command, context: click.Context, depth: int = 2) -> list[str]:
    """Return a command's usage, help and options, and below it those of its own commands."""
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    help_text = "\n".join(line for line in (command.help or "").splitlines() if line.strip() != "\b")
    lines = [f"{'#' * depth} {context.command_path}", "", "```text", usage, "```", "", markdown(help_text), ""]
    rows = [row for parameter in command.get_params(context) if (row := parameter.get_help_record(context))]
    if rows:
        lines += ["| option | |", "|---|---|", *(f"| `{_cell(a)}` | {_cell(markdown(b))} |" for a, b in rows), ""]
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            if inner := command.get_command(context, name):
                lines += section(inner, click.Context(inner, info_name=name, parent=context), depth + 1)
    return lines


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
