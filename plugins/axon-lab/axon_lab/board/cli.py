"""`axon board`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from axon_core import UsageError
from axon_core.cli import echo, json_option, print_json, print_table
from axon_lab.board.folders import EntryFile, TaskFolder, find_task, read_tasks
from axon_lab.board.tasks import Selection

F = TypeVar("F", bound=Callable[..., Any])
_tell = partial(echo, err=True)


class _Seeds(click.ParamType):
    """Whole numbers with commas between them."""

    name = "seeds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Return the numbers, or end with an error that names the rule."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"must be whole numbers with commas between them, as in 3,4,5, got {value!r}", param, ctx)


def _records(command: F) -> F:
    return click.option(
        "--records",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path("records"),
        show_default=True,
        help="The folder of records.",
    )(command)


@click.group("board", invoke_without_command=True)
@_records
@json_option
@click.pass_context
def command(ctx: click.Context, records: Path, as_json: bool) -> None:
    """List the board's tasks and their records; the subcommands show, check and enter recipes."""
    if ctx.invoked_subcommand is not None:
        return
    tasks = read_tasks(records)
    if as_json:
        print_json([_task_facts(task) for task in tasks])
        return
    rows = [_listed(task) for task in tasks]
    print_table(["task", "record", "unit", "entry", "date", "remarks"], rows)


def _listed(task: TaskFolder) -> tuple[str, ...]:
    if (record := task.record) is None:
        return task.name, "none yet", task.task.unit, "", "", ""
    entry = record.entry
    return task.name, f"{entry.mean:.4f}", task.task.unit, record.name, entry.date, "; ".join(entry.remarks)


@command.command("show")
@click.argument("task")
@_records
@json_option
def show_entries(task: str, records: Path, as_json: bool) -> None:
    """Show a task's rules and all its entries."""
    folder = find_task(records, task)
    if as_json:
        print_json(_task_facts(folder))
        return
    rules = folder.task
    echo(f"{rules.title}\n{rules.summary}\n")
    echo(f"measured: {rules.metric}, {rules.unit}; {'higher' if rules.higher_is_better else 'lower'} is better")
    if rules.parameters:
        echo(f"at most {rules.parameters:,} parameters")
    if rules.seconds:
        echo(f"at most {rules.seconds:,.0f} s on {rules.cores} cores, {rules.seconds * rules.cores:,.0f} s of the CPU")
    for table, values in (("data", rules.data), ("trainer", rules.trainer), ("evaluation", rules.evaluation)):
        if values:
            echo(f"given: {table} {', '.join(f'{name} = {value!r}' for name, value in values.items())}")
    for reference in rules.reference:
        echo(f"to compare with: {reference.title}, {reference.value:g} ({reference.source})")
    echo()
    columns = ["entry", "date", "mean", "seeds", "s", "parameters", "chosen on", "remarks"]
    print_table(columns, map(_entry_row, folder.entries))


def _entry_row(one: EntryFile) -> tuple[str, ...]:
    entry = one.entry
    count = entry.selection.candidates
    part = f"{entry.selection.part}{'' if count is None else f', of {count}'}"
    remarks = "; ".join(entry.remarks)
    return (
        one.name,
        entry.date,
        f"{entry.mean:.4f}",
        entry.figures,
        f"{entry.seconds:.0f}",
        f"{entry.parameters:,}",
        part,
        remarks,
    )


@command.command("check")
@click.argument("task")
@click.argument("entry", required=False)
@click.option("--seeds", "--seed", type=_Seeds(), default=(), help="Only these of the entry's seeds, as in 3,4.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Keep the run folders here.")
@_records
@json_option
@click.pass_context
def recheck(
    ctx: click.Context,
    task: str,
    entry: str | None,
    seeds: tuple[int, ...],
    out: Path | None,
    records: Path,
    as_json: bool,
) -> None:
    """Run an entry of TASK again, by default the record, and exit with 1 unless its figures are measured again."""
    from axon_lab.board.checking import check_entry  # imports torch

    folder = find_task(records, task)
    file = folder.find(entry)
    with ExitStack() as stack:
        runs = out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="axon-board-")))
        found = check_entry(folder, file, seeds, runs, _tell)
    if as_json:
        print_json({**found.model_dump(mode="json"), "holds": found.holds})
    else:
        for problem in found.problems:
            echo(f"broken rule: {problem}")
        for remark in found.remarks:
            echo(f"remark: {remark}")
        rows = [
            (
                str(s.seed),
                f"{s.lowest:.4f}" if s.lowest == s.highest else f"{s.lowest:.4f} to {s.highest:.4f}",
                f"{s.measured:.4f}",
                f"{s.difference:+.4f}",
                f"{s.seconds:.0f}",
            )
            for s in found.seeds
        ]
        if rows:
            print_table(["seed", "recorded", "measured", "difference", "s"], rows)
        verdict = "holds" if found.holds else "does not hold"
        echo(f"{folder.name}/{file.name} {verdict}, within {folder.task.tolerance:g} {folder.task.unit}")
    ctx.exit(0 if found.holds else 1)


@command.command("enter")
@click.argument("task")
@click.argument("recipe")
@click.option("--name", help="The entry's name; by default the recipe's.")
@click.option("--seeds", type=_Seeds(), required=True, help="Seeds that took no part in the choice, as in 3,4,5.")
@click.option("--changed", required=True, help="What changed against the record.")
@click.option("--chosen-on", type=click.Choice(["validation", "none"]), required=True, help="What candidates saw.")
@click.option("--how", required=True, help="How the recipe was chosen, in a sentence.")
@click.option("--candidates", type=click.IntRange(0), required=True, help="How many recipes were compared.")
@click.option("--chosen-seeds", type=_Seeds(), default=(), help="Seeds of the choice, which the entry may not have.")
@click.option(
    "--runs", type=click.Path(file_okay=False, path_type=Path), default=Path("runs/board"), help="For the run folders."
)
@click.option("--dry-run", is_flag=True, help="Only check the rules.")
@_records
@json_option
def enter_recipe(
    task: str,
    recipe: str,
    name: str | None,
    seeds: tuple[int, ...],
    changed: str,
    chosen_on: Any,
    how: str,
    candidates: int,
    chosen_seeds: tuple[int, ...],
    runs: Path,
    dry_run: bool,
    records: Path,
    as_json: bool,
) -> None:
    """Train RECIPE with seeds of its own, evaluate each once on the held-out part, and write the entry."""
    from axon_lab.board.entering import check_candidate, enter_candidate  # import torch

    folder = find_task(records, task)
    name = name or Path(recipe).stem.replace("_", "-")
    chosen = Selection(part=chosen_on, how=how, candidates=candidates, seeds=chosen_seeds)
    if not changed.strip():
        raise UsageError("--changed says what is new about the recipe; it must not be empty")
    if dry_run:
        size = check_candidate(folder, name, recipe, seeds, chosen)
        echo(f"{recipe} keeps the rules of {task}, with {size:,} parameters; leave out --dry-run to enter it")
        return
    found = enter_candidate(folder, name, recipe, seeds, chosen, changed, runs, _tell)
    if as_json:
        print_json({"entry": found.name, "mean": found.entry.mean, **found.entry.model_dump(mode="json")})
        return
    record = folder.record
    best = record is None or folder.is_better(found.entry.mean, record.entry.mean)
    echo(f"{task}/{found.name}: mean {found.entry.mean:.4f} {folder.task.unit}{', a new record' if best else ''}")
    echo(f"Written to {folder.path / found.name}.toml and {found.recipe}; commit both")


@command.command("page")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="The folder to write to.")
@_records
def export_board(out: Path, records: Path) -> None:
    """Write the board as a page: Markdown, and each record over time as a picture."""
    from axon_lab.board.pages import write_board_page

    echo(f"Written to {write_board_page(read_tasks(records), out)}")


def _task_facts(folder: TaskFolder) -> dict[str, Any]:
    """Return a task with its entries as plain values."""
    record = folder.record
    return {
        "name": folder.name,
        "task": folder.task.model_dump(mode="json"),
        "record": record and record.name,
        "entries": [
            {
                "name": one.name,
                "mean": one.entry.mean,
                "remarks": one.entry.remarks,
                **one.entry.model_dump(mode="json"),
            }
            for one in folder.entries
        ],
    }
