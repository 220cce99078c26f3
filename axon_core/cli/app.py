"""The group of commands, and `main`, which turns every error into one paragraph and an exit code."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import time
import traceback
from collections.abc import Sequence
from importlib import import_module

import click
from click.shell_completion import CompletionItem

from axon_core.cli.output import MOST, Warnings, echo
from axon_core.errors import AmbiguousKey, AxonError, ContractError, UnknownKey, explained
from axon_core.escaping import printable, shortened
from axon_core.registry.discovery import Entry, discover
from axon_core.registry.packages import command_line

# Name -> the line that `axon --help` shows. The module `axon_core.cli.<name>` defines the click command, as `command`.
# The help does not import it, because several commands need torch.
COMMANDS = {
    "check": "Run the conformance kit on a plugin.",
    "doctor": "Check every installed plugin and say how to repair what is broken.",
    "evaluate": "Evaluate a trained model on held-out data.",
    "generate": "Continue a text with a trained model.",
    "info": "Describe a component and its options, or a recipe.",
    "list": "List what the installed plugins offer.",
    "new": "Start a plugin for a paper.",
    "papers": "List the installed papers.",
    "plan": "Say what a training would need on many devices.",
    "recipes": "List the installed recipes.",
    "reproduce": "Check the claims of a paper.",
    "search": "Search components, recipes and papers, installed or not.",
    "tokenize": "Turn texts into token shards, for data larger than memory.",
    "train": "Train a model from a recipe.",
}


_FIRST = 5.0  # seconds for the first of several processes to say what is wrong for all; torchrun then ends the others


class _Commands(click.Group):
    """The commands of the core and of the plugins."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*COMMANDS, *(entry.key for entry in discover().entries("command"))})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        # Discovery comes first: it may have to protect the import of torch, which a command triggers.
        commands = discover().entries("command")
        if cmd_name in COMMANDS:
            return import_module(f"axon_core.cli.{cmd_name}").command
        found = [e for e in commands if cmd_name in (e.key, e.qualified)]
        if found and ctx.resilient_parsing:  # shell completion, which runs no plugin's code
            return click.Command(cmd_name, params=[click.Argument(["files"], nargs=-1, type=click.Path())])
        if len(found) > 1:
            names = " or ".join(entry.qualified for entry in found)
            raise AmbiguousKey(f"{len(found)} plugins offer the command {cmd_name!r}; choose one: {names}")
        return load_command(found[0]) if found else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if (command := self.get_command(ctx, args[0])) is None:
            from axon_core.registry.suggest import left_out, nearest

            if why := left_out("command", args[0]):
                raise UnknownKey(f"there is no command {args[0]!r}: {why}")
            near = nearest(args[0], self.list_commands(ctx))
            hint = f"did you mean {' or '.join(near)}?" if near else "`axon --help` lists the commands"
            raise UnknownKey(f"there is no command {args[0]!r}; {hint}")
        return command.name, command, args[1:]

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete a command's name from metadata alone, without importing a command."""
        about = {
            entry.key: printable(command_line(entry), line=True) for entry in discover().entries("command")
        } | COMMANDS
        names = [CompletionItem(name, help=about[name]) for name in sorted(about) if name.startswith(incomplete)]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]

    def get_help(self, ctx: click.Context) -> str:
        return printable(super().get_help(ctx))  # the names come from installed files

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))
        if entries := [e for e in discover().entries("command") if e.key not in COMMANDS]:
            with formatter.section("Commands of plugins"):
                formatter.write_dl([(e.key, command_line(e)) for e in entries])


def load_command(entry: Entry) -> click.Command:
    """Import a plugin's command. Raises `PluginLoadError`, or `ContractError` if it is not a click command."""
    command = entry.load()
    if not isinstance(command, click.Command):
        raise ContractError(f"{entry.target} of {entry.source} must be a click command, got {command!r}")
    return command


@click.command(cls=_Commands)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="axon-core", message="axon-core %(version)s")
def cli(debug: bool) -> None:
    """Axon: AI research as plugins. Each paper is a package, and its parts fit any model."""


def main(args: Sequence[str] | None = None) -> int:
    """Run `axon` and return its exit code: 0 for success, 1 for a failure, 2 for wrong usage, 130 for an interruption.

    If the reader closes the pipe early, as `head` does, the command ends silently with 1.
    """
    argv = list(sys.argv[1:] if args is None else args)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # the parent process may have closed it
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison]  the same
        echo("Error: the standard output is closed; redirect it to a file or to /dev/null", err=True)
        return 2
    log = logging.getLogger("axon")
    if not log.handlers:
        log.addHandler(Warnings())
    try:
        code = _run(argv)
        sys.stdout.flush()  # here, where a failure can still be reported
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):  # leaves nothing to flush at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        echo(f"Error: {explained(error)}", err=True)
        return 1
    return code


def _run(argv: list[str]) -> int:
    """Run a command, print its error if there is one, and return the exit code."""
    options = argv[: argv.index("--")] if "--" in argv else argv
    debug = "--debug" in options
    if debug:  # accepted anywhere, because people append it to the line that failed
        argv.remove("--debug")
    try:
        result = cli.main(argv, prog_name="axon", standalone_mode=False, obj={"debug": debug})
        return result if isinstance(result, int) else 0
    except click.Abort:
        echo("Interrupted.", err=True)
        return 130
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        if os.environ.get("RANK", "0") != "0":
            time.sleep(_FIRST)
        echo(shortened(shown.getvalue(), MOST), err=True, nl=False)
        return error.exit_code
    except BrokenPipeError:
        raise
    except SystemExit as error:  # of a hook that ended a training, which says where it can be resumed
        for note in getattr(error, "__notes__", []):
            echo(note, err=True)
        raise
    except Exception as error:
        if getattr(error, "told", False):  # by another process of this training
            pass
        elif debug:
            echo(traceback.format_exc(), err=True, nl=False)
        else:
            message = f"Error: {shortened(explained(error), MOST)}"
            echo("\n".join([message, *getattr(error, "__notes__", [])]), err=True)
        return error.exit_code if isinstance(error, AxonError) else 1
