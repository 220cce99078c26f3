"""Generation in bulk: a file of prompts in, a file of JSON lines out, which a later call can complete."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ConfigDict

from axon_core.checkpoint.atomic import writing
from axon_core.config import validate
from axon_core.documents import parse_json
from axon_core.errors import CheckpointError, DataError, Interrupted, UsageError
from axon_core.folders import refuse_folder
from axon_core.generation.api import Completion, Request, decode_requests, warn_beyond
from axon_core.generation.decoder import check_prompt
from axon_core.interfaces.model import CausalLM
from axon_core.json_text import to_json
from axon_core.randomness import Key
from axon_core.text import records
from axon_core.text.prompts import encode_prompts
from axon_core.text.tokenizer import Tokenizer

__all__ = ["BatchPlan", "Row", "generate_rows", "plan", "prompts_by_id", "record"]

Id = str | int

_ROW = {"id", "prompt", "text", "finish", "tokens", "origin"}
_BEGIN = b'{"id": '
_RESTART = "choose another file, or remove this one to start again"


class BatchPrompt(records.PromptRecord):
    """A prompt, and its id if it has one of its own."""

    model_config = ConfigDict(extra="forbid")

    prompt: str
    """The text to continue; it may be empty if a marker comes before it."""
    id: records.Text | int | None = None
    """Identifies the prompt; by default the number of its line."""


class Row(NamedTuple):
    """A prompt, and what to generate from it."""

    id: Id
    """The prompt's id."""
    prompt: str
    """The prompt."""
    request: Request
    """Its tokens, options and seed."""
    origin: str
    """A checksum of everything that determines what the row will hold."""


@dataclass(frozen=True)
class BatchPlan:
    """What remains to be added to a file of results."""

    tokenizer: Tokenizer
    path: Path
    logprobs: bool
    done: int
    """How many rows the file holds already."""
    pending: tuple[Row, ...]
    """The other rows, longest prompts first, so that a lack of memory shows at once."""


def prompts_by_id(path: Path) -> dict[Id, str]:
    """Return the prompts in a file, by their ids and in their order.

    In a file named `.jsonl` or `.json`, each line is an object with `prompt` and, optionally, `id`. In any other file,
    each line is a prompt. An id defaults to the line's number, counted from 1. Blank lines are skipped.

    Raises:
        DataError: the file cannot be read, holds no prompt, or a line lacks `prompt` or holds something else.
        UsageError: two prompts have the same id.
    """
    if path.suffix not in (".jsonl", ".json"):
        return _plain(path)
    prompts: dict[Id, str] = {}
    found = records.read_records(path, BatchPrompt)
    for number, (prompt, own) in zip(found.lines, ((line.prompt, line.id) for line in found), strict=True):
        key = number if own is None else own
        if key in prompts:
            raise UsageError(f"line {number} of {path} has the same id {key!r} as an earlier line; change one of them")
        prompts[key] = prompt
    return prompts


def _plain(path: Path) -> dict[Id, str]:
    refuse_folder(path, "a file of prompts")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise DataError(f"cannot read the prompts in {path}: {reason}") from None
    prompts: dict[Id, str] = {number: line for number, line in enumerate(text.split("\n"), 1) if line.strip()}
    if not prompts:
        raise DataError(f"{path} has no prompts; write one per line")
    return prompts


def plan(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompts: Mapping[Id, str],
    path: Path,
    *,
    options: Mapping[str, Any],
    seed: int = 0,
    logprobs: bool = False,
    made_by: Mapping[str, str | None] | None = None,
) -> BatchPlan:
    """Check everything, and find the prompts that have no row yet in the file at `path`.

    A prompt's result does not depend on its place, the other prompts, or the number of calls. A prompt whose id is a
    number has the seed `seed + id - 1`; one whose id is a text has a seed derived from `seed` and the id. Each row
    names its origin, a checksum of its request, of `logprobs`, and of `made_by`; rows of another origin are refused. A
    half-written last line is removed.

    Args:
        model: any causal language model; it needs no weights yet.
        tokenizer: the one the model was trained with.
        prompts: all prompts, by id (`prompts_by_id`).
        path: the file of results.
        options: fields of `Request` for all prompts: `max_new_tokens`, `sampling`, `stop`.
        seed: what all seeds derive from.
        logprobs: whether rows hold the tokens' log-probabilities.
        made_by: what else determines the rows, such as a checksum of the model and the dtype it computes in.

    Raises:
        UsageError: an option is wrong, or the file holds the results of other prompts or of another origin.
        ContextError: a prompt is longer than the model's context.
        DataError: a prompt is empty or cannot be encoded, or the file holds something else.
    """
    named = [(f"the prompt {key!r}", prompt) for key, prompt in prompts.items()]
    rows: list[Row] = []
    for key, prompt in zip(prompts, encode_prompts(named, tokenizer), strict=True):
        check_prompt(model, prompt.tokens, prompt.name)
        request = validate(Request, {**options, "prompt": prompt.tokens, "seed": _seed(seed, key)})
        facts = {**(made_by or {}), "request": request.model_dump(mode="json"), "logprobs": logprobs}
        origin = hashlib.sha256(to_json(facts, sort_keys=True).encode()).hexdigest()[:16]
        rows.append(Row(key, prompt.text, request, origin))
    done = _finished(path, {row.id: row for row in rows})
    pending = sorted((row for row in rows if row.id not in done), key=lambda row: -len(row.request.prompt))
    return BatchPlan(tokenizer, path, logprobs, len(done), tuple(pending))


def _seed(seed: int, key: Id) -> int:
    return seed + key - 1 if isinstance(key, int) else Key((seed, key)).seed


def _finished(path: Path, rows: Mapping[Id, Row]) -> set[Id]:
    """Return the ids of the rows already in a file, and remove a half-written last line."""
    if not path.is_file():  # missing, or a device, which may never end
        return set()
    data = path.read_bytes()
    *lines, tail = data.split(b"\n")
    if not (tail.startswith(_BEGIN) or _BEGIN.startswith(tail)) or _is_other(tail):
        raise DataError(f"{path} does not end with a row of results; choose another file")  # never cut such a file
    done: set[Id] = set()
    for number, line in enumerate(lines, 1):
        try:
            found: dict[str, Any] = parse_json(line.decode())
            key = found["id"]
            if not (found.keys() >= _ROW and isinstance(key, str | int)):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise DataError(f"line {number} of {path} is not a row of results; choose another file") from None
        row = rows.get(key)
        if row is None or row.prompt != found["prompt"]:
            raise UsageError(
                f"line {number} of {path} has the result of a prompt {key!r} that is not in the input; {_RESTART}"
            )
        if row.origin != found["origin"]:
            raise UsageError(
                f"line {number} of {path} was made by another model or with other options. To continue a file, "
                "keep its model, dtype, quantisation, seed, sampling, stop strings, number of new tokens and "
                f"log-probabilities; use the same options, {_RESTART}"
            )
        done.add(key)
    if tail:
        os.truncate(path, len(data) - len(tail))
    return done


def _is_other(tail: bytes) -> bool:
    """Whether a last line without a newline is whole JSON that is not a row of results."""
    try:
        row: Any = parse_json(tail.decode())
    except (json.JSONDecodeError, UnicodeDecodeError):
        return False
    except ValueError:  # no row is nested that deep
        return True
    return not (isinstance(row, dict) and row.keys() >= _ROW)


def generate_rows(
    model: CausalLM,
    plan: BatchPlan,
    *,
    batch_size: int = 8,
    compile: bool = False,
    progress: Callable[[int, int, int], None] = lambda done, rows, tokens: None,
) -> None:
    """Append the rows of a plan to its file, each as soon as it is finished.

    A row is what `record` returns, between the prompt's id and the row's origin. Prompts of about the same length run
    as one batch. If the model fails on a row, the others are finished all the same. One warning is logged if texts may
    outgrow the context that the model was trained on.

    Args:
        model: the plan's model, with weights.
        plan: what `plan` found to do.
        batch_size: how many prompts run side by side.
        compile: whether decoding is compiled (`axon_core.generation.compile.compiled`).
        progress: called with the numbers of rows done, of all rows, and of tokens generated by this call.

    Raises:
        CheckpointError: the file cannot be written, or the model failed on a row, for example because its scores are
            not finite; another plan retries the row.
        Interrupted: by Ctrl-C; another plan continues.
    """
    done, total, made = plan.done, plan.done + len(plan.pending), 0
    failed: list[tuple[Row, Exception]] = []
    warn_beyond(model.context, [row.request for row in plan.pending])
    try:
        with writing(plan.path), plan.path.open("ab") as file:
            for first in range(0, len(plan.pending), batch_size):
                batch = plan.pending[first : first + batch_size]
                for row, completion in _completions(model, plan.tokenizer, batch, compile):
                    if isinstance(completion, Exception):
                        failed.append((row, completion))
                        continue
                    made += 1
                    if completion.finish:
                        values = record(row.prompt, completion, plan.logprobs)
                        line = {"id": row.id, **values, "origin": row.origin}
                        file.write(to_json(line, ensure_ascii=False).encode() + b"\n")
                        file.flush()
                        done += 1
                        progress(done, total, made)
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted: {done} of {total} prompts are done; the same command continues there"
        ) from None
    if failed:
        row, error = failed[0]
        raise CheckpointError(
            f"the model failed on {len(failed)} of {total} prompts, first on {row.id!r}: {error}. The "
            f"other results are in {plan.path}; the same command retries the failed prompts"
        ) from error


def _completions(
    model: CausalLM, tokenizer: Tokenizer, batch: Sequence[Row], compile: bool
) -> Iterator[tuple[Row, Completion | Exception]]:
    """For each token yield its row's completion so far, or the model's error if it fails on that row alone."""
    completions = [Completion() for _ in batch]
    try:
        for chunk in decode_requests(model, tokenizer, [row.request for row in batch], compile=compile):
            completions[chunk.row].add(chunk)
            yield batch[chunk.row], completions[chunk.row]
    except Exception as error:  # a third party's model may raise anything
        left = [row for row, completion in zip(batch, completions, strict=True) if completion.finish is None]
        if len(batch) == 1:
            yield batch[0], error
        else:
            for row in left:
                yield from _completions(model, tokenizer, [row], compile)


def record(prompt: str, completion: Completion, logprobs: bool) -> dict[str, Any]:
    """Return a completion as JSON: `prompt`, `text`, `finish`, `tokens`, and `logprobs` if they are asked for."""
    row = {"prompt": prompt, "text": completion.text, "finish": completion.finish, "tokens": completion.tokens}
    return {**row, "logprobs": completion.logprobs} if logprobs else row
