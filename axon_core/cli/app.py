"""The group of commands, and `main`, which turns every error into one paragraph and an exit code."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

import click
from click.shell_completion import CompletionItem

from axon_core.cli.output import MOST, Warnings, echo
from axon_core.errors import AmbiguousKey, AxonError, ContractError, UnknownKey
from axon_core.escaping import printable, shortened
from axon_core.registry.discovery import Entry, discover
from axon_core.registry.packages import command_line

# Name -> the line `axon --help` shows. The module `axon_core.cli.<name>` holds the click command, as `command`; it is
# not imported for the help, because several need torch.
COMMANDS = {
    "check": "Run the conformance kit on a plugin.",
    "doctor": "Examine every installed plugin and say how to repair what is broken.",
    "evaluate": "Measure a trained model on the held-out data.",
    "generate": "Continue a text with a trained model.",
    "info": "Describe a component and its options, or a recipe.",
    "list": "List what the installed plugins offer.",
    "new": "Start a plugin for a paper.",
    "papers": "List the installed papers.",
    "recipes": "List the installed recipes.",
    "reproduce": "Check the claims of a paper.",
    "search": "Search components, recipes and papers, installed or not.",
    "train": "Train a model by a recipe.",
}


class _Commands(click.Group):
    """The core's commands and those of plugins."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*COMMANDS, *(entry.key for entry in discover().entries("command"))})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        commands = discover().entries("command")  # before a command imports torch, which discovery may have to protect
        if cmd_name in COMMANDS:
            return import_module(f"axon_core.cli.{cmd_name}").command
        found = [e for e in commands if cmd_name in (e.key, e.qualified)]
        if found and ctx.resilient_parsing:  # completion, which runs no plugin's code
            return click.Command(cmd_name, params=[click.Argument(["files"], nargs=-1, type=click.Path())])
        if len(found) > 1:
            names = " or ".join(entry.qualified for entry in found)
            raise AmbiguousKey(f"the command {cmd_name!r} is in {len(found)} plugins; say which: {names}")
        return load_command(found[0]) if found else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if (command := self.get_command(ctx, args[0])) is None:
            from axon_core.registry.suggest import nearest

            near = nearest(args[0], self.list_commands(ctx))
            hint = f"did you mean {' or '.join(near)}?" if near else "`axon --help` lists the commands"
            raise UnknownKey(f"there is no command {args[0]!r}; {hint}")
        return command.name, command, args[1:]

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete a command's name from metadata alone: no command is imported."""
        about = {
            entry.key: printable(command_line(entry), line=True) for entry in discover().entries("command")
        } | COMMANDS
        names = [CompletionItem(name, help=about[name]) for name in sorted(about) if name.startswith(incomplete)]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]

    def get_help(self, ctx: click.Context) -> str:
        return printable(super().get_help(ctx))  # names of commands and plugins are those of installed files

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))
        if entries := [e for e in discover().entries("command") if e.key not in COMMANDS]:
            with formatter.section("Commands of plugins"):
                formatter.write_dl([(e.key, command_line(e)) for e in entries])


def load_command(entry: Entry) -> click.Command:
    """Import a plugin's command. Raises `PluginLoadError`, and `ContractError` where it is no click command."""
    command = entry.load()
    if not isinstance(command, click.Command):
        raise ContractError(f"{entry.target} of {entry.source} should be a click command, but is {command!r}")
    return command


@click.command(cls=_Commands)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="axon-core", message="axon-core %(version)s")
def cli(debug: bool) -> None:
    """Axon: AI research made of plugins. Each paper is a package; its parts fit any model."""


def main(args: Sequence[str] | None = None) -> int:
    """Run `axon` and return its exit code: 0, 1 for a failure, 2 for a wrong request, 130 when interrupted.

    A reader that takes no more of the output, as `head` does, ends it with 1 and no word.
    """
    argv = list(sys.argv[1:] if args is None else args)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # closed by whoever started it
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison]  likewise
        echo("Error: the standard output is closed; send it to a file, or to /dev/null", err=True)
        return 2
    log = logging.getLogger("axon")
    if not log.handlers:
        log.addHandler(Warnings())
    try:
        code = _run(argv)
        sys.stdout.flush()  # here, where it can still be told what is wrong with it
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):  # so that nothing is left to be flushed at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        echo(f"Error: {_explained(error)}", err=True)
        return 1
    return code


def _run(argv: list[str]) -> int:
    """Run a command and print its error, if there is one; return the exit code."""
    options = argv[: argv.index("--")] if "--" in argv else argv
    debug = "--debug" in options
    if debug:  # it is accepted anywhere, as people add it to the end of the line that failed
        argv.remove("--debug")
    try:
        result = cli.main(argv, prog_name="axon", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.Abort:
        echo("Interrupted.", err=True)
        return 130
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        echo(shortened(shown.getvalue(), MOST), err=True, nl=False)
        return error.exit_code
    except BrokenPipeError:
        raise
    except Exception as error:
        if debug:
            echo(traceback.format_exc(), err=True, nl=False)
        else:
            message = f"Error: {shortened(_explained(error), MOST)}"
            echo("\n".join([message, *getattr(error, "__notes__", [])]), err=True)
        return error.exit_code if isinstance(error, AxonError) else 1


# How torch says so: on a GPU, on a CPU, and where a number of bytes or of elements is beyond 64 bits.
_NO_MEMORY = (
    "OutOfMemoryError",
    "DefaultCPUAllocator",
    "std::bad_alloc",
    "Storage size calculation overflowed",
    "numel: integer multiplication overflow",
    "Overflow when unpacking long",
)


def _explained(error: Exception) -> str:
    if isinstance(error, AxonError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if isinstance(error, RecursionError):
        return "something in the input is nested too deeply, a list in a list or a table in a table; make it flatter"
    if isinstance(error, MemoryError) or any(name in f"{type(error).__name__}: {error}" for name in _NO_MEMORY):
        return (
            "the memory is not enough for this; make the model, the batch or the beam smaller, the text shorter, or "
            "free some"
        )
    return (
        f"{type(error).__name__}: {error}. This is a fault of Axon or of a plugin, not of your input; "
        "`axon --debug …` shows where it happened"
    )
