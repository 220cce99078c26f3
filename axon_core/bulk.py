"""Generation in bulk: a file of prompts in, a file of JSON lines out, which a later call completes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from axon_core.config import Config, at, validate
from axon_core.decoding import check_prompt
from axon_core.errors import DataError, Interrupted, UsageError
from axon_core.generation import Completion, Request, chunks
from axon_core.interfaces.model import CausalLM
from axon_core.tokenizer import Tokenizer

__all__ = ["finished", "generate_rows", "read_prompts", "record"]

Id = str | int

_BEGIN = b'{"id": '


class _Line(Config):
    id: Id
    prompt: str


def read_prompts(path: Path) -> dict[Id, str]:
    """Return the prompts in a file, by their ids and in their order.

    In a file named `.jsonl` or `.json` each line is an object with `prompt` and, if it is not to be the line's number,
    `id`. In any other, each line is a prompt, and the line's number, counted from 1, its id.

    Raises:
        DataError: the file cannot be read, holds no prompt, or a line is no JSON.
        ConfigError: a line lacks `prompt`, or holds something else.
        UsageError: two prompts have the same id.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise DataError(f"cannot read the prompts in {path}: {reason}") from None
    if lines[-1] == "":  # the file ends with a newline, as it should
        lines.pop()
    prompts: dict[Id, str] = {}
    for number, text in enumerate(lines, 1):
        line = _Line(id=number, prompt=text)
        if path.suffix in (".jsonl", ".json"):
            try:
                values = json.loads(text)
            except ValueError as error:
                raise DataError(f"line {number} of {path} is no JSON: {error}") from None
            with at(source=f"line {number} of {path}"):
                line = validate(_Line, {"id": number, **values} if isinstance(values, dict) else values)
        if line.id in prompts:
            raise UsageError(f"line {number} of {path} has the id {line.id!r} of a line before it; give it another")
        prompts[line.id] = line.prompt
    if not prompts:
        raise DataError(f"{path} holds no prompt; write one a line")
    return prompts


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
    if not (tail.startswith(_BEGIN) or _BEGIN.startswith(tail)):  # never cut a file that is something else
        raise DataError(f"{path} ends with what is no row of results; choose another file")
    done: set[Id] = set()
    for number, line in enumerate(lines, 1):
        try:
            row: dict[str, Any] = json.loads(line)
            key, prompt = row["id"], row["prompt"]
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
        Interrupted: by Ctrl-C; the same call goes on.
    """
    done = finished(path, prompts)
    pending = _pending(model, tokenizer, prompts, done, options, seed)
    made = 0
    try:
        with path.open("ab") as file:
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


def _pending(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompts: Mapping[Id, str],
    done: set[Id],
    options: Mapping[str, Any],
    seed: int,
) -> list[tuple[Id, Request]]:
    """Check all prompts, and return the requests that are not done; the longest come first.

    What is too much for the memory then shows at once, and the remaining time is not underrated.
    """
    pending: list[tuple[Id, Request]] = []
    for i, (key, prompt) in enumerate(prompts.items()):
        try:
            tokens = tokenizer.encode_prompt(prompt)
        except DataError as error:
            raise DataError(f"the prompt {key!r}: {error}") from None
        check_prompt(model, tokens, f"the prompt {key!r}")
        if key not in done:
            pending.append((key, validate(Request, {**options, "prompt": tokens, "seed": seed + i})))
    return sorted(pending, key=lambda one: -len(one[1].prompt))
