"""`axon tokenize`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from axon_core.cli.output import ProgressLine, echo, json_option, print_json
from axon_core.errors import Interrupted
from axon_core.text.shards.choosing import chosen_tokenizer, saved_tokenizer
from axon_core.text.shards.folder import ShardIndex
from axon_core.text.shards.tokenizing import SHARD_BYTES, TokenizerChoice, tokenize_files


@click.command("tokenize")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--tokenizer",
    required=True,
    metavar="T",
    help="A folder with a saved model or tokenizer, a sentencepiece .model file, or what a recipe's data.tokenizer can "
    "be: byte, char, sentencepiece or a table. One that must be trained is trained on 10 MB of the text.",
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="The folder to make, or one that was interrupted."
)
@click.option(
    "--field", default="text", show_default=True, help="The field of a JSON line, or the column of a table, to read."
)
@click.option("--processes", default=1, show_default=True, type=click.IntRange(1, 1024), help="How many work at once.")
@click.option("--skip-invalid", is_flag=True, help="Leave out lines and rows that are no documents, and count them.")
@click.option(
    "--shard-bytes",
    default=SHARD_BYTES,
    show_default=True,
    type=click.IntRange(1024, 1 << 40),
    help="About how many bytes of a file become one shard.",
)
@json_option
def command(
    paths: tuple[Path, ...],
    tokenizer: str,
    out: Path,
    field: str,
    processes: int,
    skip_invalid: bool,
    shard_bytes: int,
    as_json: bool,
) -> None:
    """Turn texts larger than memory into a folder of token shards, to train from with data.type=tokens.

    Each PATH is a file or a folder: text (a document per file), .jsonl (a document per line, also as .gz and .zst), or
    .parquet (a document per row). After an interruption, the same command continues where it stopped.
    """
    line = ProgressLine("kB", "tokens")
    try:
        index = tokenize_files(
            paths,
            _choice(tokenizer, field),
            out,
            field=field,
            skip=skip_invalid,
            processes=processes,
            shard_bytes=shard_bytes,
            report=lambda read, total, tokens: line(-(-read // 1000), -(-total // 1000), tokens),
        )
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted; the same command continues with the shards that are missing in {out}"
        ) from None
    if as_json:
        print_json({"out": str(out), **index.model_dump(mode="json", exclude={"shards"}), "shards": len(index.shards)})
    else:
        echo("\n".join(described_shards(index)))
        echo(f"Train on it: --set \"data={{type='tokens', path={shlex.quote(str(out))!r}}}\"")


def described_shards(index: ShardIndex) -> list[str]:
    """Return the counts of a folder of shards as lines."""
    per_token = index.text_bytes / index.tokens
    left_out = f", {index.left_out:,} left out as invalid" if index.left_out else ""
    return [
        f"tokens: {index.tokens:,} of {index.vocab_size:,} kinds, {index.dtype}, in {len(index.shards):,} shards",
        f"documents: {index.documents:,}{left_out}",
        f"text: {index.text_bytes:,} bytes, {per_token:.2f} per token",
    ]


def _choice(tokenizer: str, field: str) -> TokenizerChoice:
    place = Path(tokenizer).expanduser()
    if not place.is_dir():
        return chosen_tokenizer(tokenizer, field)
    if not (place / "tokenizer.json").exists() and (place / "run.json").exists():
        from axon_core.training.pretrained import model_folder  # imports torch, which nothing else here needs

        place = model_folder(place)
    return saved_tokenizer(place)
