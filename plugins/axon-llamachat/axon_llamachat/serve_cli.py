"""`axon serve`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import click

from axon_core import AxonError, UsageError
from axon_core.cli import Opened, echo, inference_options
from axon_eet import Engine
from axon_llamachat.app import make_app
from axon_llamachat.limits import ServerLimits
from axon_llamachat.served import ServedModel
from axon_llamachat.server import bound, check_exposure, serve
from axon_llamachat.sizes import SIZE
from axon_llamachat.templates import choose_template


@click.command("serve")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; others need a key.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option(
    "--api-key",
    "key",
    envvar="AXON_API_KEY",
    metavar="KEY",
    help="What clients must send. Other users of this machine can read it in the command; set AXON_API_KEY instead.",
)
@click.option("--memory", type=SIZE, help="Memory for keys and values, such as 2GB, shared equally by the models.")
@click.option("--rows", default=16, show_default=True, type=click.IntRange(1, 1024), help="Most texts at once.")
@click.option("--max-waiting", default=256, show_default=True, type=click.IntRange(0), help="Most requests that wait.")
@click.option("--max-body", type=SIZE, default="4MB", show_default=True, help="Largest body of a request.")
@click.option(
    "--max-seconds", default=600.0, show_default=True, type=click.FloatRange(0, min_open=True), help="Longest answer."
)
@click.option("--grace", default=30.0, show_default=True, type=click.FloatRange(0), help="Seconds for answers to end.")
@click.option("--cors", metavar="ORIGIN", multiple=True, help="Origin whose pages may call the server; repeatable.")
@click.option("--template", metavar="NAME", help="Chat template; by default the run's, or Llama 2's.")
@inference_options
def command(
    runs: Sequence[Path],
    host: str,
    port: int,
    key: str | None,
    memory: int | None,
    rows: int,
    max_waiting: int,
    max_body: int,
    max_seconds: float,
    grace: float,
    cors: Sequence[str],
    template: str | None,
    open_run: Callable[[Path], Opened],
    compile: bool,
) -> int:
    """Serve the models in RUN…, run folders or model folders, with OpenAI's API.

    A model is called by the name of its folder. After Ctrl-C, no more requests are taken; those that run are finished.
    """
    check_exposure(host, key)
    names = _names(runs)
    limits = ServerLimits(body=max_body, answer_seconds=max_seconds)
    with ExitStack() as stack:
        where = stack.enter_context(bound(host, port))
        models: list[ServedModel] = []
        share = None if memory is None else memory // len(runs)
        for name, run in names.items():
            found = open_run(run)
            chosen = choose_template(run, found.tokenizer, template)
            if compile:
                echo(f"{name}: compiling its pass, which takes a minute or more")
            engine = Engine(
                found.load(), found.tokenizer, memory=share, rows=rows, waiting=max_waiting, compile=compile
            )
            stack.enter_context(engine)
            mark = "-".join(str(value) for value in found.made_by.values() if value)[-80:]
            models.append(ServedModel(name, engine, found.tokenizer, found.model.context, chosen and chosen[1], mark))
            _describe(models[-1], chosen and chosen[0])
        app = make_app(models, key=key, limits=limits, cors=cors)
        url = _url(host, where.getsockname()[1])
        cut = serve(
            app,
            where,
            grace=grace,
            started=lambda: echo(f"Serving {', '.join(names)} at {url}/v1"),
            said=lambda text: echo(text, err=True),
        )
    if cut:
        raise AxonError(f"{cut} requests were ended before their answers were complete")
    return 0


def _names(runs: Sequence[Path]) -> dict[str, Path]:
    """Return the folders by name. Raises `UsageError` if two have one name."""
    named = {run.resolve().name: run for run in runs}
    if len(named) < len(runs):
        raise UsageError(f"the folders must have different names, got {', '.join(map(str, runs))}; rename one")
    return named


def _describe(model: ServedModel, template: str | None) -> None:
    chats = f"chat template {template}" if template else "no chat template"
    memory = model.engine.report().memory.total
    echo(f"{model.name}: {model.context:,} tokens of context, {memory:,} bytes for keys and values, {chats}")
    for note in model.engine.notes:
        echo(f"{model.name}: {note}")


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
