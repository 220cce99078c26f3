"""`axon translate`."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click
import torch

from axon_core.cli.generate import model_folder
from axon_core.config import validate
from axon_core.errors import AxonError, UsageError
from axon_core.run import RunFolder
from axon_core.storage import writing
from axon_transformer.averaging import latest_models
from axon_transformer.corpus import read_lines, split_lines
from axon_transformer.heatmap import cross_attention, draw
from axon_transformer.search import Search
from axon_transformer.translate import Translation, Translator


@click.command("translate")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@click.option(
    "--input", "source", type=click.Path(path_type=Path), help="A file of sentences, one a line; plain or gzip."
)
@click.option("--output", type=click.Path(path_type=Path), help="With --input: the file for the translations.")
@click.option("--beam", default=4, show_default=True, help="Candidates kept side by side; 1 is greedy decoding.")
@click.option("--length-penalty", default=0.6, show_default=True, help="How much longer translations are preferred.")
@click.option("--n-best", default=1, show_default=True, help="Translations of each sentence, each with its score.")
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(1), help="Sentences at once.")
@click.option("--average", default=1, show_default=True, type=click.IntRange(1), help="Average the last checkpoints.")
@click.option(
    "--attention", type=click.Path(path_type=Path), help="With one TEXT: draw what each layer and head looks at."
)
def command(
    run: Path,
    texts: tuple[str, ...],
    source: Path | None,
    output: Path | None,
    beam: int,
    length_penalty: float,
    n_best: int,
    batch_size: int,
    average: int,
    attention: Path | None,
) -> None:
    """Translate with the model in RUN, a run's folder or a model's.

    Each TEXT is a sentence. Without any, and without --input, sentences are read from the standard input: one a line,
    or from a terminal, one after another.
    """
    if texts and source:
        raise UsageError("give either TEXT or --input")
    if output and not source:
        raise UsageError("--output needs --input")
    if attention and (len(texts) != 1 or not texts[0].strip()):
        raise UsageError(f"--attention draws one TEXT that is not empty, got {list(texts)}")
    search = validate(Search, {"beam": beam, "length_penalty": length_penalty, "n_best": n_best})
    lines = list(texts) if source is None else read_lines(source)  # before the model, so that errors come at once
    if not lines and not sys.stdin.isatty():
        lines, source = split_lines(sys.stdin.buffer.read(), "the standard input"), Path("the standard input")
    translator = Translator.load(*_models(run, average))
    if not lines:
        _converse(translator, search)
        return
    place = "sentence {:,}".format if source is None else f"line {{:,}} of {source}".format
    begun = time.monotonic()
    with writing(output or Path(".")), contextlib.ExitStack() as stack:
        stream = stack.enter_context(output.open("w", encoding="utf-8")) if output else None
        progress = _Progress() if source else lambda done, total: None
        found = translator.translate(lines, search, batch_size=batch_size, place=place, progress=progress)
        for number, translations in enumerate(found, 1):
            for line in _lines(number, translations, search):
                click.echo(line, file=stream)
    if source:
        click.echo(f"{_counts(lines, found)}, {time.monotonic() - begun:.1f} s", err=True)
    if attention:
        _draw(translator, lines[0], found[0][0], attention)


def _models(run: Path, average: int) -> list[Path]:
    """Return the model folders that are to be averaged."""
    if average == 1:
        return [model_folder(run)]
    last = RunFolder.open(run).checkpoints.find(None)
    if last is None:
        raise UsageError(f"cannot average {average} checkpoints: {run} has none")
    return latest_models(last / "model", average)


def _lines(number: int, translations: Sequence[Translation], search: Search) -> list[str]:
    """Return a sentence's lines of output: its translation or, of several, number, score and text between tabs."""
    if search.n_best == 1:
        return [translations[0].text]
    return [f"{number}\t{each.score:.4f}\t{each.text}" for each in translations]


def _counts(lines: Sequence[str], found: Sequence[Sequence[Translation]]) -> str:
    empty = sum(not line.strip() for line in lines)
    cut_off = sum(not translations[0].ended for translations in found)
    return f"{len(lines):,} sentences, {empty:,} of them empty, {cut_off:,} translations cut off"


def _converse(translator: Translator, search: Search) -> None:
    with contextlib.suppress(ImportError):  # not on every system; `input` uses it once it is imported
        import readline  # noqa: F401
    click.echo("A sentence to translate; Ctrl-D leaves.", err=True)
    while True:
        try:
            text = input("> ")
        except (EOFError, KeyboardInterrupt):
            click.echo()
            return
        try:
            (translations,) = translator.translate([text], search)
        except AxonError as error:
            click.echo(f"Error: {error}", err=True)
            continue
        for line in _lines(1, translations, search):
            click.echo(line)


def _draw(translator: Translator, text: str, translation: Translation, path: Path) -> None:
    """Draw what the decoder looks at while it writes each token of a translation."""
    (source,) = translator.encode([text])
    written, read = [*translation.tokens, translator.eos], [translator.bos, *translation.tokens]
    maps = cross_attention(translator.model, torch.tensor(source), torch.tensor(read))
    piece = translator.tokenizer.piece
    draw(maps, [_label(piece(token)) for token in source], [_label(piece(token)) for token in written], path)
    click.echo(f"Attention: {path}", err=True)


def _label(piece: bytes) -> str:
    return piece.decode("utf-8", "replace").replace(" ", "▁").replace("$", r"\$") or "(end)"


class _Progress:
    """Shows on the standard error how many sentences are done, on one line of a terminal or every 5 seconds."""

    def __init__(self) -> None:
        self._tty = sys.stderr.isatty()
        self._begun = self._shown = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._shown < (0.2 if self._tty else 5):
            return
        self._shown = now
        left = (now - self._begun) / done * (total - done)
        line = f"{done:,}/{total:,} sentences, {left:.0f} s left"
        click.echo(f"\r\033[K{line}" if self._tty else line, nl=not self._tty, err=True)
