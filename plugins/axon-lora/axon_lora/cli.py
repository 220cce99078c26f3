"""`axon merge`, and `axon adapter import` and `export`."""

from __future__ import annotations

import shlex
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import click

from axon_core import UsageError
from axon_core.cli import echo, generate_command
from axon_core.registry import install_line


@click.command("merge")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Model folder to create, new or empty.")
def merge(run: Path, out: Path) -> None:
    """Write the model of RUN, trained with an adapter, as a whole model that needs no other folder."""
    from axon_core.interfaces import CausalLM
    from axon_lora.merging import merge_adapter

    model = merge_adapter(run, out)
    echo(f"{model.n_parameters:,} parameters, in {out}")
    if isinstance(model, CausalLM):
        echo(f"Next: {generate_command(out, out, '')}")


@click.group("adapter")
def adapter() -> None:
    """Adapters in the files of PEFT."""


@adapter.command("export")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to create, new or empty.")
def export_adapter(run: Path, out: Path) -> None:
    """Write the adapter of RUN as PEFT loads it, on top of what `axon export --format hf` writes of its base."""
    with _llamas():
        from axon_lora.peft_export import export_peft
    found = export_peft(run, out)
    echo(f"{found.parameters:,} parameters of an adapter of {found.maps} matrices, in {out}")
    echo(f"Its base: axon export {shlex.quote(str(found.base))} --format hf --out BASE")


@adapter.command("import")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--base", required=True, type=click.Path(path_type=Path), help="Run or model folder that it belongs to.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Model folder to create, new or empty.")
def import_adapter(path: Path, base: Path, out: Path) -> None:
    """Make a model of BASE, an imported checkpoint, and the PEFT adapter in the folder PATH."""
    with _llamas():
        from axon_lora.peft_import import import_peft
    found = import_peft(path, base, out)
    echo(f"{found.parameters:,} parameters of an adapter of {found.maps} matrices, in {out}")
    echo(f"Next: {generate_command(out, out, '')}")


@contextmanager
def _llamas() -> Generator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "axon_xllama":
            raise
        raise UsageError(f"PEFT's files are for Llamas; {install_line('axon-lora', 'peft')}") from None
