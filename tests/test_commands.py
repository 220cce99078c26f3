"""The commands that pages show: each is one that `axon` knows, with options it has; those that only look are run."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from axon_core import TRAINERS
from axon_core.cli.app import cli
from axon_core.errors import UnknownKey
from axon_core.papers.card import recipes
from axon_core.papers.scaffold import KINDS, Project, render

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "docs" / "_ext"), str(ROOT / "docs")]

import generate  # noqa: E402

LOOKING = {"info", "list", "papers", "recipes", "search"}
FENCE = re.compile(r"^ *```(?:sh|console|)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"(?<!`)`(axon [^`\n]+)`(?!`)")


def commands(text: str) -> list[str]:
    """The lines of a page's blocks that call `axon`, and those in the middle of a sentence."""
    blocks = "\n".join(FENCE.findall(text)).replace("\\\n", " ")
    lines = [re.sub(r"^ *(\$ |[A-Z_]+=\S+ )*", "", line) for line in blocks.splitlines()]
    return [line for line in [*lines, *INLINE.findall(text)] if line.startswith("axon ")]


def parsed(line: str) -> tuple[str, dict[str, object]]:
    """The command and its options. Raises `click.UsageError`, or `AxonError`, where `axon` would refuse them."""
    name, *rest = shlex.split(line, comments=True)[1:]
    context = click.Context(cli, info_name="axon")
    _, command, _ = cli.resolve_command(context, [name])
    assert command is not None
    inner = click.Context(command, info_name=name, parent=context)
    if name == "evaluate":  # it also has the options of the run's trainer
        fields = {field for trainer in TRAINERS.values() for field in trainer.Evaluation.model_fields}
        options = [click.Option([f"--{field.replace('_', '-')}"]) for field in sorted(fields)]
        command = click.Command(name, params=[*command.params, *options])
    given, left, _ = command.make_parser(inner).parse_args(rest)
    if left and not isinstance(command, click.Group):
        raise click.UsageError(f"{line}: {' '.join(left)} is more than {name} takes")
    for parameter in command.params:
        if isinstance(parameter.type, click.Choice) and (value := given.get(str(parameter.name))):
            for one in value if parameter.multiple else [value]:
                parameter.type.convert(one, parameter, inner)
    return name, given


def shown() -> list[tuple[str, str]]:
    """Each page that shows commands, by its path, with the command."""
    written = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("plugins/*/*.md")]
    pages = {
        path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in written if "_build" not in path.parts
    }
    for kind in KINDS:
        files = render(Project("quiet-paper", kind), standalone=True)
        pages |= {f"axon new --kind {kind}: {name}": text for name, text in files.items() if name.endswith(".md")}
    return sorted({(page, line) for page, text in pages.items() for line in commands(text)})


SHOWN = shown()


@pytest.mark.parametrize(("page", "line"), SHOWN, ids=[f"{page}: {line}" for page, line in SHOWN])
def test_a_command_that_a_page_shows_is_one(page: str, line: str) -> None:
    if len(words := shlex.split(line, comments=True)) == 2:
        assert words[1] in ["--help", *cli.list_commands(click.Context(cli))]  # it only names it
        return
    name, given = parsed(line)
    own = page.startswith("axon new") or any(
        name in line for name in ("my-", "quiet", "shards-a")
    )  # what the reader makes
    if name == "train" and not own:
        assert given["recipe"] in {recipe.name for recipe in recipes()}
    if name in LOOKING and not own:
        ran = CliRunner().invoke(cli, words[1:])
        assert ran.exit_code == 0, ran.output


def test_commands_of_generated_pages_are_ones() -> None:
    lines = {line for text in generate.pages().values() for line in commands(text)}
    assert len(lines) > 20
    for line in lines:
        if len(line.split()) > 2:
            parsed(line)


def test_commands_are_found_and_wrong_ones_noticed() -> None:
    block = "AXON_DATA_DIR=... axon train a \\\n  --out b  # so"
    text = f"as `axon info GQA` says\n```sh\n{block}\n```\n```console\n$ axon list\n```\n"
    assert commands(text) == ["axon train a    --out b  # so", "axon list", "axon info GQA"]
    assert parsed("axon new x --kind norm")[1]["kind"] == "norm"
    for wrong in ("axon tran x", "axon list --jsn", "axon train a b", "axon new x --kind nrom", "axon train a --out"):
        with pytest.raises((click.UsageError, UnknownKey)):
            parsed(wrong)
    assert len(SHOWN) > 40
