"""`axon generate`."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import click

from axon_core.checkpoint.atomic import claimed_file
from axon_core.cli.options import Opened, generation_options, inference_options
from axon_core.cli.output import ProgressLine, echo, echo_generated, print_json
from axon_core.config import validate
from axon_core.errors import AxonError, UsageError
from axon_core.generation.api import Request, chunks, complete
from axon_core.generation.batch_file import generate_rows, plan, prompts_by_id, record
from axon_core.generation.decoder import check_prompt
from axon_core.generation.sampling import Sampling
from axon_core.text.tokenizer import Tokenizer


@click.command("generate")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--prompt", help="The text to continue.")
@click.option(
    "--input",
    "source",
    type=click.Path(path_type=Path),
    help="A file of prompts, one per line; in a .jsonl file, objects with prompt and id.",
)
@click.option(
    "--output",
    "target",
    type=click.Path(path_type=Path),
    help="With --input: the file of JSON lines, one per prompt; prompts already in it are skipped.",
)
@click.option(
    "--batch-size", default=8, show_default=True, type=click.IntRange(1), help="With --input: prompts per batch."
)
@click.option("--stop", metavar="TEXT", multiple=True, help="Stop before this text; repeatable.")
@generation_options
@inference_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON: text, tokens, reason for the end.")
@click.option("--logprobs", is_flag=True, help="Add the log-probability of each token to the JSON.")
def command(
    run: Path,
    prompt: str | None,
    source: Path | None,
    target: Path | None,
    batch_size: int,
    stop: tuple[str, ...],
    sampling: Sampling,
    max_new_tokens: int,
    seed: int,
    open_run: Callable[[Path], Opened],
    compile: bool,
    as_json: bool,
    logprobs: bool,
) -> None:
    """Continue a text with the model in RUN, a run folder or a model folder.

    With --input and --output, continues every text of a file. Results are written as they finish, not in the order
    of the input. After an interruption, the same command continues where it stopped.
    """
    if (prompt is None) == (source is None):
        raise UsageError("give either --prompt or --input")
    if (source is None) != (target is None):
        raise UsageError("--input and --output need each other; give both or neither")
    if logprobs and not (as_json or target):
        raise UsageError("--logprobs needs --json or --output")
    options = {"max_new_tokens": max_new_tokens, "sampling": sampling, "stop": stop}
    if source is not None and target is not None:
        prompts = prompts_by_id(source)
        click.get_current_context().with_resource(claimed_file(target, source))
        found = open_run(run)
        todo = plan(
            found.model,
            found.tokenizer,
            prompts,
            target,
            options=options,
            seed=seed,
            logprobs=logprobs,
            made_by=found.made_by,
        )
        if left := len(todo.pending):
            model, progress = found.load(), ProgressLine("prompt", "tokens")
            progress(len(prompts) - left, len(prompts), 0)
            generate_rows(model, todo, batch_size=batch_size, compile=compile, progress=progress)
        echo(f"{len(prompts)} prompts in {target}, {left} of them new", err=True)
        return
    request = validate(Request, {**options, "prompt": prompt, "seed": seed})
    found = open_run(run)
    tokens = request.tokens(found.tokenizer)
    check_prompt(found.model, tokens)
    request = request.model_copy(update={"prompt": tokens})  # encoded once
    model = found.load()
    if as_json:
        print_json(record(str(prompt), complete(model, found.tokenizer, [request], compile=compile)[0], logprobs))
        return
    for i, chunk in enumerate(chunks(model, found.tokenizer, [request], compile=compile)):
        echo_generated(chunk.text if i else f"{prompt}{chunk.text}", nl=False)
    echo_generated()


def generate_command(run: Path, model: Path, sample: str = "") -> str:
    """Return the command that generates with the model of a run, to suggest it to the user.

    The tokenizer in the folder `model` can encode its prompt: an English one, or else the first word of `sample`.
    """
    prompt = next(iter(sample.split()), "The ")
    with suppress(AxonError):
        Tokenizer.load(model).encode_prompt("The ")
        prompt = "The "
    return f"axon generate {shlex.quote(str(run))} --prompt {shlex.quote(prompt)}"
