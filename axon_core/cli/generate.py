"""`axon generate`."""

from __future__ import annotations

from pathlib import Path

import click

from axon_core.config import validate
from axon_core.errors import CheckpointError
from axon_core.generation import stream
from axon_core.interfaces.model import CausalLM
from axon_core.run import RunFolder
from axon_core.sampling import Sampling
from axon_core.tokenizer import Tokenizer


@click.command("generate")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--prompt", required=True, help="The text to go on from.")
@click.option("--max-new-tokens", default=200, show_default=True, type=click.IntRange(1), help="How much, at most.")
@click.option("--temperature", default=0.8, show_default=True, help="0 always takes the most likely token.")
@click.option("--top-k", type=int, help="Choose among the k most likely tokens only.")
@click.option(
    "--top-p", default=1.0, show_default=True, help="Choose among the most likely tokens up to probability p."
)
@click.option("--seed", default=0, show_default=True, help="Equal seeds give equal texts.")
def command(
    run: Path, prompt: str, max_new_tokens: int, temperature: float, top_k: int | None, top_p: float, seed: int
) -> None:
    """Continue a text with the model in RUN, a run's folder or a model's."""
    sampling = validate(Sampling, {"temperature": temperature, "top_k": top_k, "top_p": top_p})
    folder = model_folder(run)
    model, tokenizer = CausalLM.load(folder), Tokenizer.load(folder)
    pieces = stream(model, tokenizer, prompt, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed)
    for i, piece in enumerate(pieces):
        click.echo(piece if i else prompt + piece, nl=False)
    click.echo()


def model_folder(path: Path) -> Path:
    """Return the folder of the model in `path`: what a run exported at its end, its latest checkpoint's, or `path`.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    if (path / "config.json").exists():
        return path
    run = RunFolder.open(path)
    if run.model.exists():
        return run.model
    checkpoint = run.checkpoints.find(None)
    if checkpoint is None:
        raise CheckpointError(f"{path} has no model yet; train on: axon train --resume --out {path}")
    return checkpoint / "model"
