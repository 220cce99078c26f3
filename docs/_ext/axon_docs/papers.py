"""A page per paper, of its card, its README and its code; and the table of the front page."""

from __future__ import annotations

import inspect
import re
import tomllib
from collections import Counter
from pathlib import Path

from axon_core.papers.card import Card, cards, recipes
from axon_core.registry.discovery import GROUPS, Entry, discover
from axon_core.registry.registry import registry_of
from axon_core.testing.model import SIZES
from axon_core.training.trainer import Trainer
from axon_docs import claims
from axon_docs.docstrings import markdown
from axon_docs.names import public

_INTO = {
    "attention": "axon train xllama-tiny --set model.attention.type={}",
    "rotary_embedding": "axon train xllama-tiny --set model.rotary.type={}",
    "norm": "axon train xllama-tiny --set model.norm.type={}",
}
_LONGEST = 60  # lines of code that still read as an equation


def installed(root: Path) -> list[Card]:
    """Return the cards of the papers in this repository, by year."""
    here = [card for card in cards() if card.paper and (root / "plugins" / card.entry.distribution).is_dir()]
    return sorted(here, key=lambda card: (card.paper.arxiv, card.entry.key))


def offers(distribution: str) -> list[Entry]:
    """Return the components a distribution registers, its own registries' last, and its commands."""
    groups = discover().groups
    own = [group for group in GROUPS if group not in ("paper", "command", "hooks", "registry")]
    order = [*own, *sorted(groups.keys() - set(GROUPS)), "command"]
    found = [e for group in order for e in sorted(groups.get(group, ()), key=lambda e: e.key)]
    return [e for e in found if e.distribution == distribution]


def page(card: Card, root: Path) -> str:
    """Return the page of a paper as MyST Markdown."""
    paper, name = card.paper, card.entry.distribution
    folder = root / "plugins" / name
    readme = _linked((folder / "README.md").read_text("utf-8").partition("\n")[2], name, root)
    authors = ", ".join(paper.authors)
    return "\n".join(
        [
            f"# {paper.title}",
            "",
            f"{authors}, {paper.year}: [arXiv {paper.arxiv}](https://arxiv.org/abs/{paper.arxiv}). "
            f"The plugin is `{name}` {card.entry.version}, `pip install {name}`; see its "
            f"[reference](../reference/{card.entry.target.split('.')[0]}.md).",
            "",
            f"> {paper.summary}",
            "",
            *_equations(paper),
            *_swap(name),
            *_by_name(name),
            *_beside(card),
            *claims.section(card, claims.releases(root / "docs" / "claims")),
            "## The plugin",
            "",
            re.sub(r"^(#+ )", r"#\1", readme, flags=re.MULTILINE),
        ]
    )


def _equations(paper: Paper) -> list[str]:
    """The section of the paper's equations, typeset; a card without any has none."""
    if not paper.equation:
        return []
    lines = ["## In one equation" if len(paper.equation) == 1 else "## Equations", ""]
    for equation in paper.equation:
        lines += [f"{equation.text} *{equation.where}*", "", "```{math}", equation.latex, "```", ""]
    return lines


def table(root: Path) -> str:
    """Return the table of the front page: papers with versions, parts and claims."""
    rows = ["| plugin | paper | offers | claims |", "|---|---|---|---|"]
    for card in installed(root):
        paper, name = card.paper, card.entry.distribution
        scales = Counter(claim.scale for claim in paper.claim)
        counted = ", ".join(f"{scales[scale]} {scale}" for scale in ("exact", "scaled", "full") if scales[scale])
        rows.append(
            f"| [{name}](plugins/{name}) {card.entry.version} | [{paper.arxiv}](https://arxiv.org/abs/{paper.arxiv}) "
            f"{_cell(paper.title)} | {_offered(name)} | {f'{len(paper.claim)}: {counted}' if counted else '–'} |"
        )
    return "\n".join(rows)


def _offered(distribution: str) -> str:
    groups: dict[str, list[str]] = {}
    for entry in offers(distribution):
        key = f"`axon {entry.key}`" if entry.group == "command" else f"`{entry.key}`"
        groups.setdefault(entry.group.replace("_", " "), []).append(key)
    return "; ".join(f"{kind} {', '.join(keys)}" for kind, keys in groups.items())


def _swap(distribution: str) -> list[str]:
    commands = [_INTO[e.group].format(e.key) for e in offers(distribution) if e.group in _INTO]
    if not commands:
        return []
    return ["## Swap it in", "", "Into any model by its name, here into X-Llama:", "", "```sh", *commands, "```", ""]


def _by_name(distribution: str) -> list[str]:
    """How its models and trainers are used: the recipes that name them, and Python that runs as it stands."""
    found = {group: [e for e in offers(distribution) if e.group == group] for group in ("model", "trainer")}
    if not any(found.values()):
        return []
    lines = ["## Use it by name", ""]
    if commands := _recipes(distribution):
        lines += ["The plugin's recipes name its models and trainers:", "", "```sh", *commands, "```", ""]
    if found["model"]:
        code = [line for entry in found["model"] for line in ["", *_model(entry)]]
        lines += ["A model in Python, here a small one:", "", "```python", "from axon_core import MODELS", *code]
        lines += ["```", ""]
    if found["trainer"]:
        code = [line for entry in found["trainer"] for line in ["", *_trainer(entry)]]
        lines += ["A trainer, here with its smallest recipe, for two steps:", "", "```python"]
        lines += ["from axon_core import TRAINERS, Recipe, build_trainer, fit", *code, "```", ""]
    return lines


def _recipes(distribution: str) -> list[str]:
    """The commands that train its recipes, those for `axon train`."""
    own = [r for r in recipes() if r.distribution == distribution]
    return [f"axon train {r.name}  # {r.summary}" for r in own if "trainer" in tomllib.loads(r.path.read_text("utf-8"))]


def _model(entry: Entry) -> list[str]:
    cls = registry_of(entry.group)[entry.qualified]
    sizes = {name: value for name, value in SIZES.items() if name in cls.Config.model_fields} | dict(cls.examples[0])
    given = [f"    {name}={value!r}," for name, value in sizes.items()]
    built = f'model = MODELS["{entry.key}"].build('
    return [built, *given, ")", 'print(f"{model.n_parameters:,} parameters")']


def _trainer(entry: Entry) -> list[str]:
    example = f'TRAINERS["{entry.key}"].examples[0]'
    made = f'recipe = Recipe.of({example}, "example", "its example", ["trainer.steps=2"])'
    return [made, "print(fit(build_trainer(recipe)).metrics)"]


def _beside(card: Card) -> list[str]:
    """The section of what says an equation or is a registered part, if any: docstring and code side by side."""
    package = card.entry.target.split(".")[0]
    shown: dict[str, tuple[object, object]] = {}
    for entry in offers(card.entry.distribution):
        if entry.group != "command":
            cls = registry_of(entry.group)[entry.qualified]
            shown[cls.__qualname__] = (cls, _step(cls))
    for module, names in public(package).items():
        for found in () if module.endswith("claims") else names:
            if inspect.isfunction(found.value) and "Eq." in (found.value.__doc__ or ""):
                shown[found.name] = (found.value, found.value)
    lines = []
    for name, (documented, code) in shown.items():
        source = inspect.cleandoc("\n" + _without_docstring(code)) if code else ""
        if not source or source.count("\n") > _LONGEST:
            continue
        about = markdown(inspect.getdoc(documented) or "")
        lines += ["::::{container} beside", f":::{{container}}\n**{name}**\n\n{about}\n:::", ""]
        lines += [":::{container}", "```python", source, "```", ":::", "::::", ""]
    return ["## Equation beside code", "", *lines] if lines else []


def _step(cls: type) -> object | None:
    """The method that is the paper's: the loss of a trainer, the forward pass of a module, or what a weight becomes."""
    names = ("loss",) if issubclass(cls, Trainer) else ("forward", "features", "base_weight", "quantize")
    return next((vars(cls)[name] for name in names if name in vars(cls)), None)


def _without_docstring(code: object) -> str:
    source = inspect.cleandoc("\n" + inspect.getsource(code))
    return re.sub(r'\n *"""(.|\n)*?"""(?=\n)', "", source, count=1)


def _linked(readme: str, name: str, root: Path) -> str:
    """The README's relative links, as links between pages; those to code become the file's name."""

    def link(match: re.Match[str]) -> str:
        mark, text, target = match.groups()
        if target.startswith(("http", "#")):
            return match[0]
        path = (root / "plugins" / name / target.partition("#")[0]).resolve()
        if mark and path.is_file():
            return f"![{text}]({name}-{path.name})"
        if path.parent == root / "plugins" and path.is_dir():
            return f"[{text}]({path.name}.md)"
        return text

    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", link, readme)


def pictures(name: str, root: Path) -> dict[str, Path]:
    """Return the pictures a README shows: the names they have in the documentation, and where they lie."""
    folder = root / "plugins" / name
    found = re.findall(r"!\[[^\]]*\]\((?!http)([^)\s]+)\)", (folder / "README.md").read_text("utf-8"))
    return {f"{name}-{Path(target).name}": folder / target for target in found}


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
