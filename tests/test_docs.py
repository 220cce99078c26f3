"""The documentation: its code runs, its links resolve, and it has every public name of the core and of the plugins."""

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS / "_ext"))
sys.path.insert(0, str(DOCS))

import generate  # noqa: E402
from forked_python import ForkedPython  # noqa: E402
from new_user import environment_of_its_own  # noqa: E402

from axon_core.escaping import in_markdown  # noqa: E402
from axon_core.papers.card import recipes  # noqa: E402
from axon_core.training.recipe import Recipe  # noqa: E402
from axon_docs import claims, docstrings, names, papers, reference  # noqa: E402
from axon_lab.board import read_tasks  # noqa: E402

WRITTEN = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)
PACKAGES = names.packages()
CODE = re.compile(r"^```(python|console)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> str:
    return "\n".join(code for kind, code in CODE.findall(page.read_text("utf-8")) if kind == language)


def pages_with(language: str) -> list:
    return [pytest.param(p, id=p.relative_to(DOCS).as_posix()) for p in WRITTEN if blocks(p, language)]


def run(command: list[str], folder: Path, **environment: str) -> None:
    done = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", pages_with("python"))
def test_python_of_a_page_runs_from_top_to_bottom(page: Path, tmp_path: Path, forked: ForkedPython):
    forked.run(blocks(page, "python"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with("console"))
def test_commands_of_a_page_run_one_after_the_other(page, tmp_path):
    lines = blocks(page, "console").splitlines()
    assert all(line.startswith("$ ") for line in lines if line)
    folder = tmp_path / "work"
    folder.mkdir()
    variables = environment_of_its_own(tmp_path / "environment")
    run(["sh", "-ec", "\n".join(line.removeprefix("$ ") for line in lines)], folder, **variables)


def test_the_pages_have_code_to_run():
    assert len(pages_with("python")) >= 6 and len(pages_with("console")) >= 4


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return generate.pages()


def links(text: str) -> list[tuple[str, str]]:
    """Where a page links to outside of its code, but for other sites: a path, which may be empty, and an anchor."""
    prose = re.sub(r"^(`{3,})(?!\{py:).*?^\1|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"(?<!\\)\]\((?!https?:|mailto:)([^)\s]+)\)", prose)
    return [(path, anchor) for path, _, anchor in (target.partition("#") for target in found)]


def anchors(text: str) -> set[str]:
    """What `#` may be followed by in a link to a page: its headings, as GitHub and MyST name them, and its labels."""
    found = set(re.findall(r"^\(([\w-]+)\)=$", text, re.MULTILINE))
    prose, seen = re.sub(r"^(`{3,}).*?^\1", "", text, flags=re.DOTALL | re.MULTILINE), Counter[str]()
    for heading in re.findall(r"^#{1,4} +(.+?) *$", prose, re.MULTILINE):
        shown = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def broken(page: str, texts: Mapping[str, str], exists: Callable[[str], bool]) -> list[str]:
    """The links of a page that lead to no page or file, or to no place in it."""
    found = []
    for path, anchor in links(texts[page]):
        target = os.path.normpath(os.path.join(os.path.dirname(page), path)) if path else page
        line = target.endswith(".py") and re.fullmatch(r"L\d+", anchor)  # which `generate.py --front` keeps right
        if not exists(target) or (anchor and not line and anchor not in anchors(texts.get(target, ""))):
            found.append(f"{path}#{anchor}")
    return found


def of_the_site(made: Mapping[str, str]) -> tuple[dict[str, str], set[str]]:
    """The pages of the documentation by path, and its pictures."""
    shown = {"figures/axon.svg", "figures/visibility.svg", "figures/schedules.svg"}
    shown |= {file.relative_to(DOCS).as_posix() for file in DOCS.glob("pictures/*")}
    shown |= {f"papers/{name}" for name in claims.badges(papers.installed(ROOT), claims.releases(DOCS / "claims"))}
    shown |= {f"papers/{name}" for card in papers.installed(ROOT)
              for name in papers.pictures(card.entry.distribution, ROOT)}  # fmt: skip
    shown |= {f"lab/board-{task.name}.svg" for task in read_tasks(ROOT / "records") if task.entries}
    return generate.written() | dict(made), shown


def test_every_link_between_pages_leads_to_a_place_in_one(made):
    texts, shown = of_the_site(made)
    wrong = {page: found for page in texts if (found := broken(page, texts, {*texts, *shown}.__contains__))}
    assert not wrong
    assert sum(len(links(text)) for text in texts.values()) > 20


def test_links_out_of_the_documentation_lead_to_a_papers_page_or_become_text():
    text = "[a](../plugins/axon-gqa/README.md#claims) [`b`](../axon_core/config.py) [c](style.md#d) [e](https://f/g)"
    assert generate._within(text, DOCS) == "[a](papers/axon-gqa.md) `b` [c](style.md#d) [e](https://f/g)"
    assert generate._within("[a](../../plugins/axon-gqa/README.md)", DOCS / "x") == "[a](../papers/axon-gqa.md)"


def test_every_link_of_what_is_read_on_github_leads_to_a_place_in_a_file(made):
    files = [*ROOT.glob("*.md"), *ROOT.glob("plugins/*/*.md"), *ROOT.glob("tests/*.md"), *WRITTEN]
    texts = {file.relative_to(ROOT).as_posix(): file.read_text("utf-8") for file in files}
    pages, pictures = of_the_site(made)
    generated = {f"docs/{page}": text for page, text in pages.items()} | {f"docs/{name}": "" for name in pictures}
    folders = {page.removesuffix("/README.md"): text for page, text in texts.items()}  # with a folder its README
    shown = generated | folders | texts
    found = {page: broken(page, shown, lambda path: path in shown or (ROOT / path).exists()) for page in texts}
    assert not {page: wrong for page, wrong in found.items() if wrong}
    assert any(anchor for text in texts.values() for _, anchor in links(text))


def test_links_to_names_have_the_line_that_defines_them(tmp_path):
    (tmp_path / "a.py").write_text("X = 1\n\n\nclass A:\n    @property\n    def b(self): ...\n\n\nx: int = 2\n")
    text = "[`A`](a.py#L1) [`A.b`](a.py#L1) [`X`](a.py#L7) [`x`](a.py#L7) [file](a.py) `A`"
    found = "[`A`](a.py#L4) [`A.b`](a.py#L6) [`X`](a.py#L1) [`x`](a.py#L9) [file](a.py) `A`"
    assert generate.located(text, tmp_path) == found
    for wrong in ("[`B`](a.py#L1)", "[`A`](b.py#L1)", "[`b`](a.py#L6)"):
        with pytest.raises(SystemExit, match="does not define it"):
            generate.located(wrong, tmp_path)


def test_the_map_of_the_code_names_every_package():
    page = (DOCS / "architecture.md").read_text("utf-8")
    packages = {path.parent.name for path in ROOT.glob("axon_core/*/__init__.py")}
    tree = page.partition("```text\n")[2].partition("```")[0]
    readme = (ROOT / "README.md").read_text("utf-8").partition("```text\n")[2].partition("```")[0]
    assert set(re.findall(r"^  (\w+)/ ", tree, re.MULTILINE)) == packages
    assert set(re.findall(r"\b(\w+)/", readme)) >= packages
    subjects = {"logits": "logits", "mask": "Scope.mask", "step": "Fit._step", "checkpoint": "Checkpoints.save"}
    for subject, name in (subjects | {"axon train": "command"}).items():
        assert re.search(rf"\[`(\w+\.)?{re.escape(name)}`\]\(\S+#L\d+\)", page), subject


def test_the_page_of_results_has_the_figures_of_the_front_page():
    page = (DOCS / "results.md").read_text("utf-8")
    table = (ROOT / "README.md").read_text("utf-8").partition("## Results\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\|(?!---) .+? \|(.+) \|$", table, re.MULTILINE)[1:]
    assert 1 <= len(rows) <= 10
    figure = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?![\w.])")
    figures = [found for row in rows for found in figure.findall(row.replace(", ", " "))]
    assert len(figures) > 15 and set(figures) <= set(figure.findall(page))  # no figure of the front page is its own
    for heading in ("Language modelling", "Translation", "Decoding", "Training", "Diffusion", "Alignment"):
        section = page.partition(f"## {heading}\n")[2].partition("\n## ")[0]
        assert re.search(r"\d+ November", section) and "|---|" in section, heading


def test_the_rule_for_links_finds_what_it_is_for():
    text = """# A `page` of [links](b.md#two)

[here](#a-page-of-links) [there](b.md) [again](b.md#two-1) [label](b.md#label) [picture](c.svg) `[code](d.md)`
[no page](d.md) [no place](b.md#three) [none here](#two) [none in code](b.md#code) [site](https://example.org/#no)

```python
x = "[code](d.md)"
```
"""
    other = "# Two\n\n## Two\n\n(label)=\n\n```sh\n# code\n```\n"
    known = {"x/a.md", "x/b.md", "x/c.svg"}
    found = broken("x/a.md", {"x/a.md": text, "x/b.md": other}, known.__contains__)
    assert found == ["d.md#", "b.md#three", "#two", "b.md#code"]


def test_the_page_on_data_has_every_recipe():
    named = re.findall(
        r"^\| (`.*?) \|", (DOCS / "data.md").read_text("utf-8").partition("## The folder")[0], re.MULTILINE
    )
    listed = {name for cell in named for name in re.findall(r"`([\w-]+)`", cell)} - {"axon align"}
    assert listed == {recipe.name for recipe in recipes()}


def reference_of(made: Mapping[str, str], package: str = "axon_core") -> str:
    """The reference of a package; that of the core lies on two pages."""
    return made[f"reference/{package}.md"] + made.get(f"reference/{package}.inside.md", "")


def test_what_plugins_may_import_stands_on_one_page(made):
    page = made["reference/axon_core.md"]
    described, linked = documented(page), set(re.findall(r"\{py:obj\}`(\w+) <", page))
    for path in ["axon_core", *(f"axon_core.{folder.parent.name}" for folder in ROOT.glob("axon_core/*/__init__.py"))]:
        for name in importlib.import_module(path).__all__:
            assert f"{path}.{name}" in described or name in linked, f"{path}.{name}"
    assert not any(path.startswith("axon_core.nn.attention.") for path in described)


def test_names_the_pages_refer_to_are_in_the_reference(made):
    listed = {name for page, text in made.items() if page.startswith("reference/") for name in documented(text)}
    referred = {path for page in WRITTEN for path in re.findall(r"\{py:\w+\}`([\w.]+)`", page.read_text("utf-8"))}
    assert referred and referred <= listed


def public(module: ModuleType, file: Path) -> list[str]:
    """The public names of a module: those of `__all__`, or all that its source defines or assigns."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    found = []
    for node in ast.parse(file.read_text("utf-8")).body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                found.append(name)
            case ast.Assign(value=ast.Call(func=ast.Name(id="TypeVar"))):
                continue
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                found.append(name)
    return [name for name in found if not name.startswith("_")]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_described_and_in_the_reference(package, made):
    listed, missing, bare, seen = documented(reference_of(made, package)), [], [], 0
    described = {(id(value), path.rpartition(".")[2]) for path in listed if (value := named(path)) is not None}
    top = Path(importlib.import_module(package).__file__).parent
    for file in sorted(top.rglob("*.py")):
        parts = file.relative_to(top.parent).with_suffix("").parts
        if "cli" in parts or parts[-1].endswith("_cli") or any(p.startswith("_") and p != "__init__" for p in parts):
            continue  # the command line has a page of its own
        module = importlib.import_module(".".join(part for part in parts if part != "__init__"))
        for name in public(module, file):
            value, seen = getattr(module, name), seen + 1
            if (id(value), name) not in described:
                missing.append(f"{module.__name__}.{name}")
            if (inspect.isclass(value) or inspect.isroutine(value)) and not inspect.getdoc(value):
                bare.append(f"{module.__name__}.{name}")
    assert seen > 1 and not missing, f"not in the reference: {', '.join(missing)}"
    assert not bare, f"without a docstring: {', '.join(bare)}"


def named(path: str) -> object:
    """What a path of the reference names, if it is the name of a module's."""
    module, _, name = path.rpartition(".")
    return getattr(sys.modules.get(module), name, None)


def test_the_reference_shows_what_a_class_is_made_of(made):
    page = reference_of(made)
    assert "{py:class} StateSpec(shape: tuple[int, ...], per_token: bool = True, " in page  # a dataclass
    assert "{py:attribute} StateSpec.window\n:type: int | None\n\nHow many tokens" in page
    assert "{py:class} CacheStep(tokens: Int[Tensor, 'b n'], scope: axon_core.Scope, layers: " in page  # a named tuple
    assert "{py:attribute} CacheStep.scope\n:type: axon_core.Scope" in page
    attention = (
        "{py:class} Attention(config: axon_core.Attention.Config, rotary: axon_core.RotaryEmbedding | None = None)"
    )
    assert attention in page  # its own Config, not the base of all
    assert "{py:attribute} Attention.cross\n:type: ClassVar[bool]\n:value: True\n\nWhether it can attend" in page
    assert "{py:method} Rotation.__call__(x: " in page
    assert "{py:data} LENGTHS\n\n`(9, 6, 3)`\n\nValid tokens of the rows" in page
    assert "{py:data} Layout\n\n`Literal['half', 'interleaved']`" in page  # of a module without __all__
    assert "from_recipe(recipe: axon_core.Recipe, saved: " in page  # imported for type checkers alone


def test_every_paper_has_a_page_with_its_claims(made):
    for card in papers.installed(ROOT):
        page = made[f"papers/{card.entry.distribution}.md"]
        assert all(in_markdown(claim.text) in page for claim in card.paper.claim)
        offers_parts = any(
            entry.group not in ("command", "optimizer", "weight_decay", "environment")
            for entry in papers.offers(card.entry.distribution)
        )
        if offers_parts:  # pages of packages without parts may have it too, for functions of equations
            assert "## Equation beside code" in page and ":::{container} beside" in page


@pytest.mark.parametrize("card", papers.installed(ROOT), ids=lambda card: card.entry.key)
def test_models_and_trainers_are_used_by_name_as_their_page_says(card, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    section = made[f"papers/{card.entry.distribution}.md"].partition("## Use it by name\n")[2].partition("\n## ")[0]
    offered = [e for e in papers.offers(card.entry.distribution) if e.group in ("model", "trainer")]
    for entry in offered:
        assert f'{entry.group.upper()}S["{entry.key}"]' in section
    named = re.findall(r"^axon train (\S+)", section, re.MULTILINE)
    assert all(Recipe.load(name) for name in named)
    for kind, code in CODE.findall(section):
        assert kind == "python"
        exec(code, {})  # the page's own
    assert bool(section) == bool(offered)


def documented(page: str) -> set[str]:
    """What the Python directives of a page describe, in full."""
    found, module = set(), ""
    for kind, argument in re.findall(r"^`{3,}\{py:(\w+)\} ([\w.]+)", page, re.MULTILINE):
        module, argument = (argument, "") if kind == "currentmodule" else (module, argument)
        found.add(f"{module}.{argument}")
    return found


def test_the_front_page_is_up_to_date():
    stale = [path.name for path, text in generate.front().items() if path.read_text("utf-8") != text]
    assert not stale, f"{', '.join(stale)}: python docs/generate.py --front"


def test_docstrings_become_markdown():
    text = docstrings.markdown(
        """Return x_i * y of `a_b`.

            y = x * x

        >>> 1 + 1
        2

        Raises:
            ValueError: x is
                negative.
        """
    )
    assert text.splitlines() == [
        r"Return x\_i \* y of `a_b`.", "", "```text", "y = x * x", "```", "", "```pycon", ">>> 1 + 1", "2", "```", "",
        "", "**Raises**", "", "- `ValueError`: x is", "negative.",
    ]  # fmt: skip


def test_signatures_keep_shapes():
    def f(x: 'Float[Tensor, "b n"]', /, *rest: int, flag: bool = True) -> None: ...

    assert reference.signature(f) == '(x: Float[Tensor, "b n"], *rest: int, flag: bool = True) -> None'
    assert reference.signature(f, bound=True) == "(*rest: int, flag: bool = True) -> None"
