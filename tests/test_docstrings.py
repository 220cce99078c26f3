"""What the docstrings of all public names say: the errors they raise, the shapes of tensors, the paper behind them."""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any, Literal

import pytest
from jaxtyping import Float
from torch import Tensor

from axon_core.discovery import discover
from axon_core.errors import AxonError, ConfigError, UsageError
from axon_core.paper import cards
from axon_core.registry import registry_of
from axon_core.scaffold import placeholders

sys.path.insert(0, str(Path(__file__).parents[1] / "docs" / "_ext"))

from axon_docs import names, papers

PACKAGES = names.packages()
# A part of these is a convention or a task; its paper, where there is one, stands with what uses it.
PRACTICAL = {"chat_template", "environment", "reward", "stage"}
SOURCE = re.compile(
    r"(?P<arxiv>\d{4}\.\d{4,5}|[a-z-]+(\.[A-Z]{2})?/\d{7}),? "
    r"\(?(Sections?|Appendix|Algorithm|Eq\.|Table|Figure|section) ?\W?\w"
)
SPECIAL = ("__init__", "__call__", "__post_init__")


def functions(path: str, value: Any) -> Iterator[tuple[str, FunctionType, str]]:
    """A public function, or the public methods of a public class: path, function, and what documents it."""
    value = inspect.unwrap(value)
    if inspect.isfunction(value):
        yield path, value, inspect.getdoc(value) or ""
    for name, member in vars(value).items() if inspect.isclass(value) else ():
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if inspect.isclass(member) and member.__qualname__.startswith(f"{value.__qualname__}."):
            yield from functions(f"{path}.{name}", member)
        elif inspect.isfunction(function) and function.__module__ == value.__module__:
            if name in SPECIAL:  # what making or calling an object raises may stand with its class
                yield f"{path}.{name}", function, f"{inspect.getdoc(value)}\n{function.__doc__}"
            elif not name.startswith("_"):
                yield f"{path}.{name}", function, inspect.getdoc(getattr(value, name)) or ""


def every(package: str) -> Iterator[tuple[str, FunctionType, str]]:
    for found in (found for module in names.public(package).values() for found in module):
        yield from functions(found.path, found.value)


def raised(function: FunctionType) -> set[type[AxonError]]:
    """The errors that the function's own body raises by name."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except OSError:  # what a dataclass or a named tuple generates
        return set()
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc is not None:
            called = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            error = function.__globals__.get(called.id) if isinstance(called, ast.Name) else None
            if inspect.isclass(error) and issubclass(error, AxonError):
                found.add(error)
    return found


def unnamed(function: FunctionType, doc: str) -> list[str]:
    """The errors that are raised and of which the docstring names neither the class nor one it is a kind of."""
    kinds = {
        e: [k.__name__ for k in e.__mro__ if issubclass(k, AxonError) and k is not AxonError] for e in raised(function)
    }
    return sorted(e.__name__ for e, names in kinds.items() if not re.search(rf"\b({'|'.join(names)})\b", doc))


def bare(annotation: ast.expr) -> bool:
    """Whether it is a tensor of no stated shape. A collection of tensors of many shapes cannot state one."""
    match annotation:
        case ast.Name(id="Tensor") | ast.Attribute(attr="Tensor"):
            return True
        case ast.BinOp(left=left, right=right):
            return bare(left) or bare(right)
        case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=parts)):
            variadic = any(isinstance(part, ast.Constant) and part.value is ... for part in parts)
            return not variadic and any(map(bare, parts))
    return False


def shapeless(function: FunctionType) -> list[str]:
    """The parameters, and the result, that are tensors of no stated shape."""
    texts = {k: v if isinstance(v, str) else inspect.formatannotation(v) for k, v in function.__annotations__.items()}
    return [name for name, text in texts.items() if bare(ast.parse(text, mode="eval").body)]


def source(doc: str) -> str | None:
    """The arXiv id that a docstring gives with a place in the paper."""
    found = SOURCE.search(" ".join(doc.split()))
    return found["arxiv"] if found else None


@pytest.mark.parametrize("package", PACKAGES)
def test_errors_that_a_function_raises_are_named_in_its_docstring(package):
    found = {f"{path}: {error}" for path, function, doc in every(package) for error in unnamed(function, doc)}
    assert not found


@pytest.mark.parametrize("package", PACKAGES)
def test_functions_and_methods_of_tensors_state_their_shapes(package):
    found = {f"{path}: {name}" for path, function, _ in every(package) for name in shapeless(function)}
    assert not found


@pytest.mark.parametrize("card", papers.installed(Path(__file__).parents[1]), ids=lambda card: card.entry.key)
def test_parts_cite_the_place_in_the_paper_they_are_from(card):
    if placeholders(card.paper):
        pytest.skip(f"{card.entry.distribution} is a draft: its card does not name the paper yet")
    groups = {e.group for e in papers.offers(card.entry.distribution)} - PRACTICAL - {"command"}
    parts = [e for g in sorted(groups) for e in discover().entries(g) if e.distribution == card.entry.distribution]
    classes = {e.target.replace(":", "."): registry_of(e.group)[e.qualified] for e in parts}
    cited = {path: source(cls.__doc__ or "") for path, cls in classes.items()}
    assert not [path for path, arxiv in cited.items() if arxiv is None]
    documents = [inspect.getdoc(cls) or "" for cls in classes.values()]
    assert any(card.paper.arxiv in doc for doc in documents), "none of its parts cites the paper of the card"


def test_every_installed_paper_is_looked_at():
    assert len(papers.installed(Path(__file__).parents[1])) == len(cards())
    assert len(PACKAGES) == 1 + len(cards())
    assert sum(1 for _ in every("axon_core")) > 300


class Example:
    """An example. Raises `UsageError` where it is made of nothing."""

    def __init__(self, n: int) -> None:
        if not n:
            raise UsageError("nothing")

    def quiet(self) -> None:
        """Say nothing of the error."""
        raise ConfigError([])

    @property
    def general(self) -> int:
        """Name a kind of error. Raises UsageError."""
        raise ConfigError([])

    def rereads(self, error: AxonError) -> None:
        """Raise what it is given."""
        raise error

    def bare(self, x: Tensor, y: "Float[Tensor, 'b n']", z: dict[str, Tensor]) -> tuple[Tensor, int] | None:
        """Take and return tensors."""

    def stated(self, *x: "Float[Tensor, 'b n']", mode: Literal["Tensor"]) -> tuple[Tensor, ...]:
        """Take and return tensors."""


def test_the_rules_find_what_they_are_for():
    found = {path: (unnamed(f, doc), shapeless(f)) for path, f, doc in functions("Example", Example)}
    assert found == {
        "Example.__init__": ([], []),
        "Example.quiet": (["ConfigError"], []),
        "Example.general": ([], []),
        "Example.rereads": ([], []),
        "Example.bare": ([], ["x", "return"]),
        "Example.stated": ([], []),
    }
    assert source("Source: arXiv 2305.13245,\n    Section 2.2.") == "2305.13245"
    assert source("as in (arXiv math.GT/0309136, Eq. 5)") == "math.GT/0309136"
    assert source("arXiv 2305.13245 says so. See Section 2.") is None
