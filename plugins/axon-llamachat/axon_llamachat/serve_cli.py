"""`axon serve`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import click

from axon_core import AxonError, UsageError
from axon_core.checkpoint import load_config
from axon_core.cli import Opened, echo, inference_options, report_device
from axon_core.generation import published_sampling
from axon_core.interfaces import Model
from axon_core.registry import install_line, key_of
from axon_core.training import model_folder, pinned_model_folder
from axon_eet import Engine
from axon_llamachat.app import make_app
from axon_llamachat.limits import ServerLimits
from axon_llamachat.pages import PAGES, Page
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
@click.option("--page/--no-page", "paged", default=None, help="A page in the browser; by default if gradio is there.")
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
    paged: bool | None,
    open_run: Callable[[Path], Opened],
    compile: bool,
) -> int:
    """Serve the models in RUN…, run folders or model folders, with OpenAI's API and a page in the browser.

    A model is called by the name of its folder. After Ctrl-C, no more requests are taken; those that run are finished.
    Models that are not language models have a page alone, if a plugin offers one for them.
    """
    check_exposure(host, key)
    names = _names(runs)
    paged = _has_pages(paged)
    limits = ServerLimits(body=max_body, answer_seconds=max_seconds)
    with ExitStack() as stack:
        where = stack.enter_context(bound(host, port))
        pages = _other_pages(names, stack) if paged else {}
        texts = {name: run for name, run in names.items() if name not in pages}
        models: list[ServedModel] = []
        share = None if memory is None or not texts else memory // len(texts)
        for name, run in texts.items():
            found = open_run(run)
            notes: list[str] = []
            chosen = choose_template(run, found.tokenizer, template, notes.append)
            if compile:
                echo(f"{name}: compiling its pass, which takes a minute or more")
            engine = Engine(
                found.load(), found.tokenizer, memory=share, rows=rows, waiting=max_waiting, compile=compile
            )
            stack.enter_context(engine)
            mark = "-".join(str(value) for value in found.made_by.values() if value)[-80:]
            models.append(
                ServedModel(
                    *(name, engine, found.tokenizer, found.model.context, chosen and chosen.template, mark),
                    converses=chosen is not None and chosen.learned,
                    sampling=published_sampling(model_folder(run)),
                )
            )
            _describe(models[-1], chosen and chosen.name, notes)
        app = make_app(models, key=key, limits=limits, cors=cors, pages=pages if paged else None)
        url = _url(host, where.getsockname()[1])
        cut = serve(
            app,
            where,
            grace=grace,
            started=lambda: echo(_serving(names, url, paged, key)),
            said=lambda text: echo(text, err=True),
        )
    if cut:
        raise AxonError(f"{cut} requests were ended before their answers were complete")
    return 0


def _has_pages(wanted: bool | None) -> bool:
    """Return whether there are pages. Raises `UsageError` if they are wanted and gradio is not installed."""
    installed = find_spec("gradio") is not None
    if wanted and not installed:
        raise UsageError(f"a page needs gradio: {install_line('axon-llamachat', 'page')}")
    if wanted is None and not installed:
        echo(f"without a page in the browser, which needs gradio: {install_line('axon-llamachat', 'page')}", err=True)
    return installed and wanted is not False


def _other_pages(runs: Mapping[str, Path], stack: ExitStack) -> dict[str, Page]:
    """Return the pages that plugins offer for models of these types; each model is loaded, and stays in its folder."""
    context, pages = click.get_current_context(), dict[str, Page]()
    device: str = context.params["device"]
    for name, run in runs.items():
        folder = stack.enter_context(pinned_model_folder(run))
        kind = key_of(type(load_config(folder, Model)))
        if kind in PAGES:
            report_device(device)
            pages[name] = PAGES[kind].load(folder, name=name, device=device)
            echo(f"{name}: a page for a model of the type {kind}")
    return pages


def _serving(names: Iterable[str], url: str, paged: bool, key: str | None) -> str:
    told = f"Serving {', '.join(names)} at {url}/v1"
    if not paged:
        return told
    return f"{told}, and in the browser at {url}" + (": any name, the key as the password" if key else "")


def _names(runs: Sequence[Path]) -> dict[str, Path]:
    """Return the folders by name. Raises `UsageError` if two have one name."""
    named = {run.resolve().name: run for run in runs}
    if len(named) < len(runs):
        raise UsageError(f"the folders must have different names, got {', '.join(map(str, runs))}; rename one")
    return named


def _describe(model: ServedModel, template: str | None, notes: Sequence[str]) -> None:
    chats = f"chat template {template}" if template else "no chat template"
    memory = model.engine.report().memory.total
    echo(f"{model.name}: {model.context:,} tokens of context, {memory:,} bytes for keys and values, {chats}")
    if model.sampling:
        values = ", ".join(f"{name} {value}" for name, value in model.sampling.items())
        echo(f"{model.name}: published with {values}, for requests that do not say")
    for note in (*notes, *model.engine.notes):
        echo(f"{model.name}: {note}")


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
