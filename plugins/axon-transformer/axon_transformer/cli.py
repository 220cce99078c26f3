"""`axon translate`."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from axon_core import AxonError, UsageError, printable_json, to_json, validate
from axon_core.checkpoint import atomic_file, claimed_file
from axon_core.cli import ProgressLine, device_option, echo, echo_generated, quantize_option, report_device
from axon_core.training import RunFolder, pinned_model_folder
from axon_transformer.averaging import latest_models
from axon_transformer.corpus import read_lines, split_lines
from axon_transformer.heatmap import attention_of, check_picture, draw_heatmap
from axon_transformer.search import Search
from axon_transformer.translate import Translation, Translator


@click.command("translate")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@click.option(
    "--input", "source", type=click.Path(path_type=Path), help="A file of sentences, one per line; plain or gzip."
)
@click.option("--output", type=click.Path(path_type=Path), help="With --input: the file for the translations.")
@click.option("--beam", default=4, show_default=True, help="Candidates kept per step; 1 is greedy decoding.")
@click.option(
    "--length-penalty", default=0.6, show_default=True, help="Strength of the preference for longer translations."
)
@click.option("--n-best", default=1, show_default=True, help="Translations per sentence, each with its score.")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each sentence, with every detail.")
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(1), help="Sentences per batch.")
@click.option("--average", default=1, show_default=True, type=click.IntRange(1), help="Average the last checkpoints.")
@quantize_option
@device_option
@click.option(
    "--attention", type=click.Path(path_type=Path), help="With one TEXT: draw what each layer and head attends to."
)
def command(
    run: Path,
    texts: tuple[str, ...],
    source: Path | None,
    output: Path | None,
    beam: int,
    length_penalty: float,
    n_best: int,
    as_json: bool,
    batch_size: int,
    average: int,
    quantization: str | None,
    device: str,
    attention: Path | None,
) -> None:
    """Translate with the model in RUN, a run folder or a model folder.

    Each TEXT is a sentence. Without TEXT and --input, sentences are read from the standard input, one per line, or
    interactively from a terminal.
    """
    if texts and source:
        raise UsageError("give either TEXT or --input")
    if output and not source:
        raise UsageError("--output needs --input")
    context = click.get_current_context()
    if output:
        context.with_resource(claimed_file(output, source))
    if attention and (len(texts) != 1 or not texts[0].strip()):
        raise UsageError(f"--attention needs exactly one non-empty TEXT, got {list(texts)}")
    if attention:
        check_picture(attention)
        context.with_resource(claimed_file(attention))
    search = validate(Search, {"beam": beam, "length_penalty": length_penalty, "n_best": n_best})
    lines = list(texts) if source is None else read_lines(source)  # before the model, so that errors show at once
    if not lines and not sys.stdin.isatty():
        lines, source = split_lines(sys.stdin.buffer.read(), "the standard input"), Path("the standard input")
    show = _as_json if as_json else _texts if n_best == 1 else _numbered
    folders = _models(run, average, context)
    report_device(device)
    translator = Translator.load(*folders, device=device, quantization=quantization)
    if not lines:
        _converse(translator, search, show)
        return
    place = "sentence {:,}".format if source is None else f"line {{:,}} of {source}".format
    begun = time.monotonic()
    progress = ProgressLine("translating") if source else lambda done, total: None
    found = translator.translate(lines, search, batch_size=batch_size, place=place, progress=progress)
    shown = [line for number, text in enumerate(lines, 1) for line in show(number, text, found[number - 1])]
    if output:
        with atomic_file(output) as draft:
            draft.write_text("".join(f"{line}\n" for line in shown), encoding="utf-8")
    else:
        echo_generated("\n".join(shown))
    if source:
        echo(f"{_counts(lines, found)}, {time.monotonic() - begun:.1f} s", err=True)
    if attention:
        _draw(translator, lines[0], found[0][0], attention)


def _models(run: Path, average: int, context: click.Context) -> list[Path]:
    """Return the model folders to average; a running training removes none of them while the command runs."""
    if average == 1:
        return [context.with_resource(pinned_model_folder(run))]
    last = context.with_resource(RunFolder.open(run).checkpoints.reading())
    if last is None:
        raise UsageError(f"cannot average {average} checkpoints: {run} has none")
    return latest_models(last / "model", average)


def _texts(number: int, text: str, translations: Sequence[Translation]) -> list[str]:
    """Return a sentence's translation."""
    return [translations[0].text]


def _numbered(number: int, text: str, translations: Sequence[Translation]) -> list[str]:
    """Return a line for each translation of a sentence: number of the sentence, score and text, separated by tabs."""
    return [f"{number}\t{each.score:.4f}\t{each.text}" for each in translations]


def _as_json(number: int, text: str, translations: Sequence[Translation]) -> list[str]:
    """Return one line: the sentence and its translations."""
    record = {"source": text, "translations": [each._asdict() for each in translations]}
    return [printable_json(to_json(record, ensure_ascii=False))]


def _counts(lines: Sequence[str], found: Sequence[Sequence[Translation]]) -> str:
    empty = sum(not line.strip() for line in lines)
    cut_off = sum(not translations[0].ended for translations in found)
    return f"sentences: {len(lines):,}, empty: {empty:,}, translations cut off: {cut_off:,}"


def _converse(translator: Translator, search: Search, show: Callable[..., list[str]]) -> None:
    with contextlib.suppress(ImportError):  # not on every system; `input` uses it once it is imported
        import readline  # noqa: F401
    echo("Enter a sentence to translate; Ctrl-D quits.", err=True)
    while True:
        try:
            text = input("> ")
            (translations,) = translator.translate([text], search, place=lambda _: "the sentence")
        except (EOFError, KeyboardInterrupt):
            echo()
            return
        except (AxonError, UnicodeDecodeError) as error:
            reason = error if isinstance(error, AxonError) else f"the sentence is not {sys.stdin.encoding} text"
            echo(f"Error: {reason}", err=True)
            continue
        echo_generated("\n".join(show(1, text, translations)))


def _draw(translator: Translator, text: str, translation: Translation, path: Path) -> None:
    """Draw what the decoder attends to for each token of a translation."""
    draw_heatmap(*attention_of(translator, text, translation), path)
    echo(f"Attention: {path}", err=True)
