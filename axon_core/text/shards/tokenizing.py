"""From files of text to a folder of token shards: begun, continued after an interruption, and completed."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from axon_core.checkpoint.atomic import is_occupied, make_folder, remove_leftovers, write_text, writing
from axon_core.checkpoint.locks import lock_folder
from axon_core.documents import parse_json
from axon_core.errors import CheckpointError, DataError, UsageError
from axon_core.json_text import to_json
from axon_core.text.encoding import token_dtype
from axon_core.text.fingerprints import tokenizer_fingerprint
from axon_core.text.shards.files import ShardFacts
from axon_core.text.shards.folder import INDEX, ShardFolder, ShardIndex, inputs_checksum, token_shard_name, write_index
from axon_core.text.shards.inputs import InputFile, Span, find_inputs, units_of
from axon_core.text.shards.pool import run_units
from axon_core.text.shards.work import Job, finished_shards
from axon_core.text.tokenizer import Tokenizer

__all__ = ["SHARD_BYTES", "TokenizerChoice", "tokenize_files"]

SHARD_BYTES = 64 << 20
"""Bytes of the files, or of text in packed files, that a shard holds by default."""
_PLAN = "plan.json"
_ROUNDS = 3  # how often what is missing is made: once, unless processes of a killed call are still there
ReportBytes = Callable[[int, int, int], object]
"""Called with the bytes that have been read, those to be read in all, and the tokens so far."""


class TokenizerChoice(NamedTuple):
    """Which tokenizer is asked for."""

    name: str
    """Tells it apart from others, before it is trained."""
    make: Callable[[Sequence[Sequence[Span]]], Tokenizer]
    """Returns it, trained on a sample of the units of work where that is needed."""


@dataclass(frozen=True)
class _Plan:
    """What is asked for, and the units of work that it is cut into."""

    choice: TokenizerChoice
    options: Mapping[str, Any]
    files: Sequence[InputFile]
    units: Sequence[Sequence[Span]]

    @property
    def inputs(self) -> str:
        """The checksum that the index names."""
        return inputs_checksum([*self.options.items(), *([str(file.path), file.size] for file in self.files)])

    @property
    def total(self) -> int:
        """Bytes to be read."""
        return sum(span.size for unit in self.units for span in unit)

    def text(self) -> str:
        """Return what is kept while the folder is unfinished; files that change in between are noticed by it."""
        files = [[str(file.path), file.size, file.path.stat().st_mtime_ns] for file in self.files]
        return to_json({"options": self.options, "files": files}, indent=1)


def tokenize_files(
    paths: Iterable[Path | str],
    choice: TokenizerChoice,
    out: Path,
    *,
    field: str = "text",
    skip: bool = False,
    processes: int = 1,
    shard_bytes: int = SHARD_BYTES,
    report: ReportBytes = lambda read, total, tokens: None,
) -> ShardIndex:
    """Write the tokens of files into the folder `out`, and return its index.

    The bytes of the result depend on neither `processes` nor interruptions. Shards that an earlier call has finished
    are kept; if all are there, nothing is done.

    Args:
        paths: files, and folders of them: text, JSON lines (also as `.gz` and `.zst`), parquet.
        choice: the tokenizer.
        out: a new or empty folder, or one that an interrupted call for the same files and options has left.
        field: the field of a JSON object, or the column of a table, that holds the text.
        skip: whether lines and rows that are no documents are left out, and counted.
        processes: how many do the work.
        shard_bytes: about how many bytes of a file become a shard.
        report: is told how far it is.

    Raises:
        DataError: a file cannot be read, holds no text, or has an invalid document.
        CheckpointError: the folder cannot be written to, or another program removes shards from it.
        UsageError: the folder has something else, or another process writes to it; or a package is missing that a file
            needs.
    """
    files = find_inputs(paths)
    options = {"tokenizer": choice.name, "field": field, "skip_invalid": skip, "shard_bytes": shard_bytes}
    plan = _Plan(choice, options, files, units_of(files, shard_bytes, field))
    with _claimed_for_shards(out):
        if (done := _complete(out, plan)) is not None:
            return done
        tokenizer = _begin(out, plan)
        job = Job(out, field, skip, shard_bytes)
        _run(job, plan, processes, report)
        return _finish(out, plan, tokenizer)


@contextmanager
def _claimed_for_shards(out: Path) -> Generator[None]:
    with ExitStack() as stack:
        with writing(out):
            make_folder(out)
            stack.enter_context(lock_folder(out))
            remove_leftovers(out)
        try:
            yield
        finally:
            with writing(out):
                remove_leftovers(out)


def _complete(out: Path, plan: _Plan) -> ShardIndex | None:
    """Return the index if the folder is complete. Raises `UsageError` if it holds anything else than such shards."""
    if (out / INDEX).exists() and not (out / _PLAN).exists():
        index = ShardFolder(out).index
        if index.inputs != plan.inputs:
            raise UsageError(f"{out} has the shards of other files or options; choose another folder with --out")
        return index
    if not (out / _PLAN).exists() and is_occupied(out):
        raise UsageError(f"{out} is not empty, and nothing is overwritten; choose another folder with --out")
    return None


def _begin(out: Path, plan: _Plan) -> Tokenizer:
    """Write the plan, or compare it with the one that is there, and save the tokenizer."""
    tokenizer = None
    if (out / _PLAN).exists():
        _compare(out, plan)
        try:
            tokenizer = Tokenizer.load(out)
        except CheckpointError:  # killed before it was saved
            tokenizer = None
    tokenizer = tokenizer or plan.choice.make(plan.units)
    write_text(out / _PLAN, plan.text())
    tokenizer.save(out)
    return tokenizer


def _compare(out: Path, plan: _Plan) -> None:
    try:
        before, now = (parse_json(text) for text in ((out / _PLAN).read_text("utf-8-sig"), plan.text()))
        changed = [name for name in now["options"] if before["options"].get(name) != now["options"][name]]
        files = before["files"] != now["files"]
    except (OSError, ValueError, KeyError, AttributeError):
        raise DataError(f"{out / _PLAN} is damaged; remove the folder {out} and start again") from None
    if changed:
        name = changed[0]
        raise UsageError(
            f"{out} was begun with {name} = {before['options'].get(name)!r}, and is now asked for with "
            f"{now['options'][name]!r}; use the same option to continue, or choose another folder with --out"
        )
    if files:
        raise UsageError(
            f"{out} was begun with other files, or files that have changed since; choose another folder with --out"
        )


def _run(job: Job, plan: _Plan, processes: int, report: ReportBytes) -> None:
    tokens = 0
    for again in range(_ROUNDS):
        pending = _unfinished(job, plan)
        if again and not pending:
            return
        read = plan.total - sum(span.size for unit in pending.values() for span in unit)
        report(read, plan.total, tokens)
        for progress in run_units(job, pending, processes):
            read, tokens = read + progress.read, tokens + progress.tokens
            report(read, plan.total, tokens)
    if pending := _unfinished(job, plan):
        raise CheckpointError(
            f"{job.folder} lacks the shards of {len(pending)} parts, which another program removes; end that, and run "
            "the same command again"
        )


def _unfinished(job: Job, plan: _Plan) -> dict[int, Sequence[Span]]:
    """Return the units that are not done: after a kill, processes that outlive the first may have removed a shard."""
    found = {number: finished_shards(job.folder, number, job.fingerprint) for number in range(len(plan.units))}
    return {number: plan.units[number] for number, shards in found.items() if not (shards and shards[-1].last)}


def _finish(out: Path, plan: _Plan, tokenizer: Tokenizer) -> ShardIndex:
    fingerprint, shards = tokenizer_fingerprint(tokenizer), dict[str, ShardFacts]()
    for number in range(len(plan.units)):
        found = finished_shards(out, number, fingerprint)
        shards |= {token_shard_name(number, part): facts for part, facts in enumerate(found)}
    if not any(facts.tokens for facts in shards.values()):
        raise DataError(f"there is no text in {plan.files[0].path}{' and the others' * (len(plan.files) > 1)}")
    write_index(out, tokenizer, plan.inputs, shards, token_dtype(tokenizer.vocab_size).__name__)
    with writing(out):
        (out / _PLAN).unlink()
    return ShardFolder(out).index
