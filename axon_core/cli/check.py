"""`axon check`."""

from __future__ import annotations

import click

from axon_core.cli.output import echo, json_option, print_json, print_table


@click.command("check")
@click.argument("plugin", required=False)
@json_option
@click.pass_context
def command(ctx: click.Context, plugin: str | None, as_json: bool) -> None:
    """Run the conformance kit on the parts of PLUGIN, a distribution or a paper; by default on all installed parts.

    It also imports the plugin in a process of its own, and checks that this only defines things. Exits with 1 if a
    check fails.
    """
    from axon_core.testing.imports import ImportedPlugin, report_of
    from axon_core.testing.kit import told
    from axon_core.testing.suites import cases

    distribution = _distribution(plugin)
    results = [(case, case.failure()) for case in cases(distribution)]
    failures = [failure for _, failure in results if failure]
    imported = {case.part.name: report_of(case.part) for case, _ in results if case.part.cls is ImportedPlugin}
    if as_json:
        print_json(
            [
                {
                    "part": case.part.name,
                    "check": case.check.name,
                    "rule": case.check.rule,
                    "passed": failure is None,
                    "input": failure and failure.on,
                    "found": failure and failure.found,
                    "usual_cause": failure and case.check.cause,
                    "seconds": imported[case.part.name].seconds if case.check.name == "import_time" else None,
                }
                for case, failure in results
            ]
        )
    else:
        parts: dict[str, tuple[list[str], list[str]]] = {}
        for case, failure in results:
            parts.setdefault(case.part.name, ([], []))[failure is not None].append(case.check.name)
        rows = [
            (part, f"{len(passed)} of {len(passed) + len(failed)}", ", ".join(failed) or "-")
            for part, (passed, failed) in parts.items()
        ]
        print_table(["part", "passed", "failed"], rows)
        for text in told(failures):
            echo(f"\n{text}")
        echo()
        for name, report in imported.items():
            took = f"{report.seconds:.2f} s of CPU time, and torch {report.torch_seconds:.2f} s"
            echo(f"{name.partition(':')[2]}: its import took {took}.")
        for draft in _drafts(distribution):
            echo(f"\n{draft}")
        many = f"{len(parts)} part{'s' * (len(parts) != 1)}"
        echo(f"\n{len(results)} checks on {many}: {len(failures) or 'none'} failed.")
    ctx.exit(1 if failures else 0)


def _drafts(distribution: str | None) -> list[str]:
    """Return a line for each checked paper whose card is unfinished."""
    from axon_core.papers.card import cards
    from axon_core.papers.scaffold import placeholders

    read = [(card.entry.distribution, card.paper) for card in cards() if card.paper]
    left = {name: placeholders(paper) for name, paper in read if distribution in (None, name)}
    says = "is a draft: its card still has placeholders from `axon new`"
    return [f"{name} {says} ({', '.join(fields)})." for name, fields in left.items() if fields]


def _distribution(plugin: str | None) -> str | None:
    """Return the distribution that `plugin` names, directly or by its paper."""
    from axon_core.registry.discovery import discover, normalised_name

    papers = {entry.key: entry.distribution for entry in discover().entries("paper")}
    return normalised_name(papers.get(plugin, plugin)) if plugin else None
