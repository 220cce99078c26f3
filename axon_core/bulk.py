"""Generation in bulk: a file of prompts in, a file of JSON lines out, which a later call completes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from axon_core.config import Config, validate
from axon_core.decoding import check_prompt
from axon_core.errors import DataError, Interrupted, UsageError
from axon_core.generation import Completion, Request, chunks
from axon_core.interfaces.model import CausalLM
from axon_core.records import read_records
from axon_core.storage import writing
from axon_core.tokenizer import Tokenizer

__all__ = ["check_prompts", "finished", "generate_rows", "read_prompts", "record"]

Id = str | int

_ROW = {"id", "prompt", "text", "finish", "tokens"}
_BEGIN = b'{"id": '


class Prompt(Config):
    """A prompt and, where it has one of its own, its id."""

    prompt: str
    id: Id | None = None


def read_prompts(path: Path) -> dict[Id, str]:
    """Return the prompts in a file, by their ids and in their order.

    In a file named `.jsonl` or `.json` each line is an object with `prompt` and, if it is not to be the line's number,
    `id`. In any other, each line is a prompt, and the line's number, counted from 1, its id.

    Raises:
        DataError: the file cannot be read, holds no prompt, or a line lacks `prompt` or holds something else.
        UsageError: two prompts have the same id.
    """
    if path.suffix in (".jsonl", ".json"):
        lines = read_records(path, Prompt)
    else:
        lines = [Prompt(prompt=text) for text in _plain(path)]
    prompts: dict[Id, str] = {}
    for number, line in enumerate(lines, 1):
        key = number if line.id is None else line.id
        if key in prompts:
            raise UsageError(f"line {number} of {path} has the id {key!r} of a line before it; give it another")
        prompts[key] = line.prompt
    return prompts


def _plain(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise DataError(f"cannot read the prompts in {path}: {reason}") from None
    if not text:
        raise DataError(f"{path} holds no prompt; write one a line")
    return text.removesuffix("\n").split("\n")


def finished(path: Path, prompts: Mapping[Id, str]) -> set[Id]:
    """Return the ids of the rows that a file of results holds already; a half-written last line is removed.

    Raises:
        DataError: the file holds something else.
        UsageError: it holds the results of other prompts.
    """
    if not path.exists():
        return set()
    data = path.read_bytes()
    *lines, tail = data.split(b"\n")
    if not (tail.startswith(_BEGIN) or _BEGIN.startswith(tail)) or _is_other(tail):
        raise DataError(f"{path} ends with what is no row of results; choose another file")  # and never cut it
    done: set[Id] = set()
    for number, line in enumerate(lines, 1):
        try:
            row: dict[str, Any] = json.loads(line)
            key, prompt = row["id"], row["prompt"]
            if not (row.keys() >= _ROW and isinstance(key, str | int)):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise DataError(f"line {number} of {path} is no row of results; choose another file") from None
        if prompts.get(key) != prompt:
            raise UsageError(
                f"line {number} of {path} is the result of a prompt {key!r} that is not in the input; choose another "
                "file, or remove this one to begin anew"
            )
        done.add(key)
    if tail:
        os.truncate(path, len(data) - len(tail))
    return done


def _is_other(tail: bytes) -> bool:
    """Whether a last line without a newline is whole JSON that is no row of results."""
    try:
        row: Any = json.loads(tail)
    except ValueError:
        return False
    return not (isinstance(row, dict) and row.keys() >= _ROW)


def generate_rows(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompts: Mapping[Id, str],
    path: Path,
    *,
    options: Mapping[str, Any],
    seed: int = 0,
    batch_size: int = 8,
    logprobs: bool = False,
    compile: bool = False,
    progress: Callable[[int, int, int], None] = lambda done, rows, tokens: None,
) -> None:
    """Append to the file at `path` the row of every prompt that has none yet, each as soon as it is finished.

    A row is what `record` returns, after the prompt's id; prompts of about the same length run as one batch. What a
    prompt brings depends neither on that nor on the calls it took: number i, counted from 0, has the seed `seed + i`.

    Args:
        model: any causal language model.
        tokenizer: the one the model was trained with.
        prompts: all prompts, by id (`read_prompts`).
        path: the file of results.
        options: fields of `Request` for all prompts: `max_new_tokens`, `sampling`, `stop`.
        seed: the first prompt's seed.
        batch_size: how many prompts run side by side.
        logprobs: whether rows hold the tokens' log-probabilities.
        compile: whether decoding is compiled (`axon_core.compiling.compiled`).
        progress: is called with the rows done, all rows, and the tokens generated by this call.

    Raises:
        UsageError: a prompt is empty or an option wrong, or see `finished`. Nothing has been generated then.
        ContextError: a prompt is longer than the model's context; likewise.
        DataError: a prompt cannot be encoded, or see `finished`; likewise.
        CheckpointError: the file cannot be written.
        Interrupted: by Ctrl-C; the same call goes on.
    """
    done = finished(path, prompts)
    check_prompts(model, tokenizer, prompts)
    pending = _pending(tokenizer, prompts, done, options, seed)
    made = 0
    try:
        with writing(path), path.open("ab") as file:
            for first in range(0, len(pending), batch_size):
                batch = pending[first : first + batch_size]
                completions = [Completion() for _ in batch]
                for chunk in chunks(model, tokenizer, [request for _, request in batch], compile=compile):
                    completions[chunk.row].add(chunk)
                    made += 1
                    if chunk.finish:
                        key, _ = batch[chunk.row]
                        row = {"id": key, **record(prompts[key], completions[chunk.row], logprobs)}
                        file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                        file.flush()
                        done.add(key)
                        progress(len(done), len(prompts), made)
    except KeyboardInterrupt:
        raise Interrupted(
            f"{len(done)} of {len(prompts)} prompts are done; the same command goes on from there"
        ) from None


def record(prompt: str, completion: Completion, logprobs: bool) -> dict[str, Any]:
    """Return a completion as JSON: `prompt`, `text`, `finish`, `tokens`, and `logprobs` where they are asked for."""
    row = {"prompt": prompt, "text": completion.text, "finish": completion.finish, "tokens": completion.tokens}
    return {**row, "logprobs": completion.logprobs} if logprobs else row


def check_prompts(model: CausalLM, tokenizer: Tokenizer, prompts: Mapping[Id, str]) -> None:
    """Check that the model, which needs no weights for it, can go on from each prompt.

    Raises:
        UsageError: a prompt is empty.
        ContextError: a prompt is longer than the model's context.
        DataError: a prompt cannot be encoded.
    """
    for key, prompt in prompts.items():
        name = f"the prompt {key!r}"
        try:
            tokens = Request(prompt=prompt).tokens(tokenizer)
        except DataError as error:
            raise DataError(f"{name}: {error}") from None
        except UsageError:
            raise UsageError(f"{name} is empty; give it some text to go on from") from None
        check_prompt(model, tokens, name)


def _pending(
    tokenizer: Tokenizer, prompts: Mapping[Id, str], done: set[Id], options: Mapping[str, Any], seed: int
) -> list[tuple[Id, Request]]:
    """Return the requests that are not done; the longest come first.

    What is too much for the memory then shows at once, and the remaining time is not underrated.
    """
    pending = [
        (key, validate(Request, {**options, "prompt": tokenizer.encode_prompt(prompt), "seed": seed + i}))
        for i, (key, prompt) in enumerate(prompts.items())
        if key not in done
    ]
    return sorted(pending, key=lambda one: -len(one[1].prompt))
