"""`axon import` and `axon export`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import click

from axon_core import AxonError
from axon_core.checkpoint import claimed_folder
from axon_core.cli import echo, generate_command
from axon_core.text import Message, Tokenizer, published_template
from axon_xllama.checkpoints import export_checkpoint
from axon_xllama.checkpoints.exporting import Format
from axon_xllama.checkpoints.hub import download, is_hub_name
from axon_xllama.checkpoints.importing import (
    ProgressCallback,
    check_settings,
    import_into,
    is_metas,
    talks_as_llama_2,
)
from axon_xllama.checkpoints.layout import Notice
from axon_xllama.gguf.writing import GGUFType, export_gguf


@click.command("import")
@click.argument("path")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Model folder to create, new or empty.")
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    help="A sentencepiece model or a tokenizer.json; by default the one beside the weights.",
)
@click.option(
    "--context",
    type=click.IntRange(1),
    help="Context length of its training, in tokens; by default as PATH says. Meta's files do not say: the default is "
    "2048 if norm_eps is 1e-6, as in Llama 1, and 4096 otherwise, as in Llama 2.",
)
@click.option("--revision", help="Branch, tag or commit of the hub; by default the newest.")
def import_command(path: str, out: Path, tokenizer: Path | None, context: int | None, revision: str | None) -> None:
    """Convert a Llama, Mistral, Mixtral or Qwen checkpoint of Hugging Face, Meta, llama.cpp or llama2.c.

    PATH is a folder with config.json and safetensors, a folder with params.json and consolidated.*.pth, a .gguf file, a
    .bin file of llama2.c, or ORGANISATION/NAME on the Hugging Face hub.
    """
    from_hub = is_hub_name(path)
    if revision is not None and not from_hub:
        raise click.UsageError(f"--revision is for ORGANISATION/NAME on the hub, but PATH is {path}; leave it out")
    with claimed_folder(out) as place:
        check = partial(check_settings, tokenizer=tokenizer, context=context)
        _import(download(path, revision, check) if from_hub else Path(path), out, place, tokenizer, context)


def _import(path: Path, out: Path, place: Path, tokenizer: Path | None, context: int | None) -> None:
    """Import a checkpoint into a claimed `place`, which the user calls `out`, and say what came of it."""
    with _progress("importing") as progress, _notices() as notice:
        model = import_into(place, path, tokenizer, context, progress, notice)
    assumed = " (assumed: Meta's files do not say; --context sets it)" if context is None and is_metas(path) else ""
    echo(f"{model.n_parameters:,} parameters, {model.config.context:,} tokens of context{assumed}, in {out}")
    words = Tokenizer.load(out)
    if unused := model.config.vocab_size - words.vocab_size:
        echo(
            f"Its vocabulary has {unused:,} rows more than the tokenizer has tokens; these are never sampled. If the "
            "tokenizer belongs to another model, give the right one with --tokenizer.",
            err=True,
        )
    chats = _chats(words) or talks_as_llama_2(path)
    echo(f"Next: {f'axon chat {shlex.quote(str(out))}' if chats else generate_command(out, out)}")


def _chats(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer has a chat template that can be used; say why, if it has one that cannot."""
    if (template := published_template(tokenizer)) is None:
        return False
    try:
        template(tokenizer, [Message(role="user", content="a")])
    except AxonError as error:
        echo(f"Note: {error}.", err=True)
        return False
    return True


@click.command("export")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--format",
    required=True,
    type=click.Choice(["hf", "meta", "gguf"]),
    help="Hugging Face's layout, Meta's, or a GGUF file for llama.cpp.",
)
@click.option(
    "--type",
    "kind",
    type=click.Choice(["f32", "bf16", "q8_0"]),
    help="How a GGUF file stores matrices.  [default: f32]",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to create, or file.gguf; new.")
def export_command(run: Path, format: str, kind: GGUFType | None, out: Path) -> None:
    """Export the X-Llama in RUN, a run folder or a model folder, for other programs."""
    if kind and format != "gguf":
        raise click.UsageError(f"--type is for --format gguf; the weights of {format} are written as they are")
    with _progress("exporting") as progress, _notices() as notice:
        if format == "gguf":
            model = export_gguf(run, out, type=kind or "f32", progress=progress, notice=notice)
        else:
            model = export_checkpoint(run, out, format=cast("Format", format), progress=progress, notice=notice)
    echo(f"{model.n_parameters:,} parameters, in {out}")
    if format == "meta":
        echo(
            f"Meta's params.json does not store the context; import it with --context {model.config.context}.", err=True
        )


@contextmanager
def _notices() -> Generator[Notice]:
    """Collect notices, and print them on the standard error when the work is done."""
    texts: list[str] = []
    yield texts.append
    for text in texts:
        echo(f"Note: {text}.", err=True)


@contextmanager
def _progress(what: str) -> Generator[ProgressCallback]:
    """Show progress and remaining time on the standard error, from the first step on."""
    with ExitStack() as stack:
        bar: Any = None

        def advance(written: int, total: int) -> None:
            nonlocal bar
            if bar is None:
                bar = stack.enter_context(click.progressbar(length=total, label=what, file=sys.stderr))
            bar.update(written)

        yield advance
