"""Options that several commands share."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click
from click.core import ParameterSource

from axon_core.cli.output import echo
from axon_core.config import validate
from axon_core.errors import AxonError, UsageError
from axon_core.generation.published import published_sampling
from axon_core.generation.sampling import Sampling
from axon_core.registry.registry import registry_of
from axon_core.training.callbacks.usual import LOGS

if TYPE_CHECKING:
    from axon_core.interfaces.model import CausalLM
    from axon_core.text.tokenizer import Tokenizer

__all__ = [
    "Opened",
    "device_option",
    "generation_options",
    "inference_options",
    "log_option",
    "quantize_option",
    "report_device",
    "training_device_option",
]

Command = TypeVar("Command", bound=Callable[..., Any])

_SAMPLING = {
    "temperature": click.option(
        "--temperature", default=0.8, show_default=True, help="0 always chooses the most likely token."
    ),
    "top_k": click.option("--top-k", type=int, help="Sample only from the k most likely tokens."),
    "top_p": click.option(
        "--top-p",
        default=1.0,
        show_default=True,
        help="Sample only from the most likely tokens with a total probability of p.",
    ),
    "min_p": click.option(
        "--min-p",
        default=0.0,
        show_default=True,
        help="Leave out tokens less than p times as likely as the most likely one.",
    ),
    "repetition_penalty": click.option(
        "--repetition-penalty",
        default=1.0,
        show_default=True,
        help="Above 1, tokens already used become less likely.",
    ),
}


def _chosen(context: click.Context, parameter: click.Parameter, device: str) -> str:
    from axon_core.training.devices import choose_device

    try:
        return choose_device(device)
    except ValueError as error:
        raise UsageError(str(error)) from None


_DEVICE_HELP = "Where to compute: cpu, cuda, cuda:1; auto uses a GPU if there is one."


def device_option(command: Command) -> Command:
    """Give a command the parameter `device`, an available device; the command prints it with `report_device`."""
    option = click.option("--device", default="auto", show_default=True, callback=_chosen, help=_DEVICE_HELP)
    return option(command)


def training_device_option(command: Command) -> Command:
    """Give a command that trains from a recipe the parameter `device`, which is None if the recipe decides."""
    return click.option("--device", help=f"{_DEVICE_HELP} By default the recipe's, which is auto.")(command)


def quantize_option(command: Command) -> Command:
    """Give a command the parameter `quantization`, the name of a registered quantisation, or None."""
    about = "Store the weights in few bits: int8, int4, or any other that `axon list quantization` names."
    option = click.option("--quantize", "quantization", metavar="NAME", callback=_registered, help=about)
    return option(command)


def _registered(context: click.Context, parameter: click.Parameter, name: str | None) -> str | None:
    if name is not None:
        registry_of("quantization").entry(name)  # raises, before anything is read, if it is not installed
    return name


def _installed(context: click.Context, parameter: click.Parameter, logs: Sequence[str]) -> Sequence[str]:
    for name in logs:
        LOGS[name]()  # raises, before the data are read, if its package is not installed
    return logs


def log_option(command: Command) -> Command:
    """Give a command that trains the parameter `logs`, the value of its trainers' `log`; each is installed."""
    option = click.option(
        "--log",
        "logs",
        type=click.Choice(list(LOGS)),
        multiple=True,
        callback=_installed,
        help="Also log the metrics there; repeatable.",
    )
    return option(command)


def report_device(device: str) -> None:
    """Print the device that a command computes on, as its first line on the standard error."""
    from axon_core.training.devices import describe_device

    echo(f"on {describe_device(device)}", err=True)


def generation_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the parameters `sampling`, `max_new_tokens` and `seed`, with the options that set them.

    What the user leaves out has the value that the checkpoint in the command's `run` was published with, if it says.
    """

    @functools.wraps(command)
    def wrapped(**values: Any) -> Any:
        given = {name: values.pop(name) for name in _SAMPLING}
        context = click.get_current_context()
        for name, value in _published(values.get("run")).items():
            if context.get_parameter_source(name) is ParameterSource.DEFAULT:
                given[name] = value
        return command(sampling=validate(Sampling, given), **values)

    options = [
        click.option(
            "--max-new-tokens", default=200, show_default=True, type=click.IntRange(1), help="Most tokens to generate."
        ),
        *_SAMPLING.values(),
        click.option("--seed", default=0, show_default=True, help="Equal seeds give equal texts."),
    ]
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


def _published(run: Path | str | None) -> Mapping[str, Any]:
    from axon_core.training.pretrained import model_folder

    if run is None:
        return {}
    with contextlib.suppress(AxonError):  # which the command itself reports
        return published_sampling(model_folder(Path(run)))
    return {}


class Opened(NamedTuple):
    """A saved model whose weights have not been read yet."""

    model: CausalLM
    """The model without weights, which is enough to check prompts."""
    tokenizer: Tokenizer
    """Its tokenizer."""
    made_by: Mapping[str, str | None]
    """What its results depend on: the checksum of the model, the dtype and the quantisation."""
    load: Callable[[], CausalLM]
    """Reads the weights and returns the model, converted as the options say."""


def inference_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the parameters `open_run`, which takes a RUN and returns its model as `Opened`, and `compile`."""

    @functools.wraps(command)
    def wrapped(dtype: str | None, quantization: str | None, device: str, compile: bool, **values: Any) -> Any:
        def open_run(run: Path) -> Opened:
            import torch

            from axon_core.checkpoint.model_folder import base_weights, fingerprint
            from axon_core.checkpoint.models import load_into
            from axon_core.checkpoint.weights import dtypes
            from axon_core.interfaces.model import CausalLM
            from axon_core.nn.quantization import quantize
            from axon_core.training.pretrained import open_pretrained, pinned_model_folder

            folder = click.get_current_context().with_resource(pinned_model_folder(run))
            bare, tokenizer = open_pretrained(folder, CausalLM)

            def load() -> CausalLM:
                report_device(device)
                model = quantize(bare, quantization) if quantization else bare
                load_into(bare, folder, model)
                if dtype:  # after the quantisation, which computes its scales from the saved weights
                    model.to(torch.bfloat16 if dtype == "bf16" else torch.float32)
                if compile:
                    echo("Compiling the decoder; the first token takes a while.", err=True)
                return model.to(device)

            stored = "+".join(dtypes(base_weights(folder)))
            computed = {"fp32": "F32", "bf16": "BF16", None: stored}[dtype]
            made_by = {"model": fingerprint(folder), "dtype": computed, "quantisation": quantization}
            return Opened(bare, tokenizer, made_by, load)

        return command(open_run=open_run, compile=compile, **values)

    options = [
        click.option(
            "--dtype", type=click.Choice(["fp32", "bf16"]), help="Compute in this precision; by default as saved."
        ),
        quantize_option,
        device_option,
        click.option("--compile", is_flag=True, help="Compile the decoder: takes a minute, then runs much faster."),
    ]
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped
