"""`axon chat`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from axon_core import AxonError
from axon_core.cli import Opened, echo, echo_generated, generation_options, inference_options
from axon_xllama.conversation import Conversation


@click.command("chat")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--system", metavar="TEXT", help="System message at the start of the conversation.")
@generation_options
@inference_options
def command(
    run: Path,
    system: str | None,
    open_run: Callable[[Path], Opened],
    **options: Any,
) -> None:
    """Chat with the model in RUN, a run folder or a model folder.

    Dialogues are written in the chat template that the model was published with, or else in Llama 2's.

    /reset starts again, Ctrl-C stops an answer, Ctrl-D quits.
    """
    found = open_run(run)
    begin = partial(Conversation, tokenizer=found.tokenizer, system=system, **options)
    begin(found.model)  # an error in the system message or the tokenizer shows before the weights are read
    conversation = begin(found.load())
    with contextlib.suppress(ImportError):  # not on every system; `input` uses it once it is imported
        import readline  # noqa: F401
    echo("/reset starts again, Ctrl-D quits.", err=True)
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            echo()
            return
        except KeyboardInterrupt:
            echo("\nCtrl-D quits.", err=True)
            continue
        if text == "/reset":
            conversation.reset()
            echo("The conversation starts again.", err=True)
        elif text:
            _answer(conversation, text)


def _answer(conversation: Conversation, text: str) -> None:
    """Print the answer as it is generated; an invalid message leaves the conversation unchanged."""
    try:
        with contextlib.closing(conversation.ask(text)) as pieces:
            for piece in pieces:
                echo_generated(piece, nl=False)
        echo()
    except KeyboardInterrupt:
        echo()
    except AxonError as error:
        echo(f"Error: {error}", err=True)
    if conversation.forgotten:
        echo(
            f"The conversation is long: the model no longer sees its first {conversation.forgotten} messages.", err=True
        )
