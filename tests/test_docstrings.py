"""What the docstrings of all public names say: the errors they raise, the shapes of tensors, the paper behind them."""

import ast
import importlib
import inspect
import re
import sys
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FunctionType
from typing import Any, Literal

import pytest
from jaxtyping import Float, Int
from torch import Tensor

from axon_core.errors import AxonError, ConfigError, DataError, UsageError
from axon_core.papers.card import Card, cards
from axon_core.papers.scaffold import placeholders
from axon_core.registry.discovery import discover
from axon_core.registry.registry import registry_of
from axon_core.testing.kit import Broken
from axon_core.testing.suites import suites

sys.path.insert(0, str(Path(__file__).parents[1] / "docs" / "_ext"))

from axon_docs import names, papers
from axon_docs.documented import Documented, classes, functions
from axon_docs.raised import raised

PACKAGES = names.packages()
# A part of these is a convention or a task; its paper, where there is one, stands with what uses it.
PRACTICAL = {"chat_template", "checkpoint_family", "environment", "page", "reward", "stage"}
SOURCE = re.compile(
    r"(?P<arxiv>\d{4}\.\d{4,5}|[a-z-]+(\.[A-Z]{2})?/\d{7}),? "
    r"\(?((Sections?|Appendix|Algorithm|Eq\.|Table|Figure|section) ?\W?\w|Abstract)"
)
KEPT = {
    # What a block of `axon_core.checkpoint.atomic.writing` raises leaves it as a CheckpointError.
    "axon_core.checkpoint.claimed_file": {IsADirectoryError},
    "axon_core.checkpoint.atomic_file": {IsADirectoryError},
}
"""Errors that a function raises and that never reach who calls it."""
CHECKS = {check.run for suite in suites() for check in suite.checks}
"""How a check of the conformance kit says that its rule, which is its docstring, is broken: by raising `Broken`."""
REAL = re.compile(r"\b(Float|Real|Inexact|Num)\[")
SHAPED = re.compile(r"\b(Float|Real|Inexact|Num|Int|Integer|UInt8|Bool|Shaped)\[")
OF_NO_PAPER = {
    "linear maps, and where rows of them lie": {
        "axon_core.Linear.forward",
        "axon_core.QKV.forward",
        "axon_core.QKV.key_value",
        "axon_core.QKV.query",
        "axon_core.StackedLinear.compute_maps",
        "axon_core.StackedLinear.forward",
        "axon_core.generation.compile.multiply_row",
        "axon_core.nn.PackedLinear.compute_maps",
        "axon_core.nn.PackedLinear.forward",
        "axon_core.nn.TiedLinear.forward",
        "axon_core.nn.affine",
        "axon_core.nn.packed_product",
        "axon_core.nn.LevelLinear.product",
        "axon_core.nn.QuantizedLinear.added",
        "axon_core.nn.QuantizedLinear.compute_maps",
        "axon_core.nn.QuantizedLinear.forward",
        "axon_core.nn.int8.Int8Linear.product",
        "axon_core.nn.levels.PackedLevels.added",
        "axon_core.nn.levels.PackedLevels.product",
        "axon_core.nn.levels.coded_product",
        "axon_roformer.half_to_interleaved",
        "axon_roformer.interleaved_to_half",
        "axon_xllama.checkpoints.layout.relayout",
        "axon_xllama.checkpoints.Matrix.exported",
        "axon_xllama.checkpoints.Matrix.imported",
    },
    "definitions of probability, and formulas of any textbook": {
        "axon_core.generation.compile.scores",
        "axon_core.alignment.token_entropies",
        "axon_core.alignment.token_logprobs",
        "axon_core.generation.sample_tokens",
        "axon_core.nn.best_tokens",
        "axon_core.generation.sampling.keep_top_k",
        "axon_ddpm.losses.normal_kl",
        "axon_instructgpt.comparisons.noisy_ranking",
        "axon_instructgpt.frontier.win_rate",
        "axon_ppo.whiten",
    },
    "calls of what cites it": {"axon_core.Scope.rotate"},
    "Axon's own": {
        "axon_core.training.updates.per",
        "axon_core.nn.int4.to_int4",
        "axon_core.nn.int8.to_int8",
        "axon_core.nn.widen_levels",
        "axon_ddpm.classifier.Classifier.classify",
        "axon_ddpm.classifier.Classifier.features",
        "axon_ddpm.classifier.Classifier.forward",
    },
    "of a note that is on no arXiv, and named": {"axon_ppo.k1", "axon_ppo.k2", "axon_ppo.k3"},
    "of a paper that is on no arXiv, and named": {"axon_core.nn.Dropout.forward", "axon_core.nn.drop"},
    "of a paper that is cited as a whole": {
        "axon_ddpm.classifier.turned",
        "axon_qlora.from_dynamic",
        "axon_qlora.to_dynamic",
    },
    "handling of pictures": {
        "axon_ddpm.pictures.to_bytes",
        "axon_ddpm.quality.with_nearest",
        "axon_ddpm.quality.nearest_neighbours",
    },
}
"""What computes tensors from tensors and cites no paper, by the reason."""


def installed() -> list[Card]:
    return papers.installed(Path(__file__).parents[1])


def every(package: str) -> Iterator[Documented]:
    for found in (found for module in names.public(package).values() for found in module):
        yield from functions(found.path, found.value)


def undocumented(path: str, value: Any) -> list[str]:
    """The classes, functions, methods and properties without a docstring, their own or one that they inherit."""
    bare = [place for place, cls in classes(path, value) if not inspect.getdoc(cls)]
    return bare + [found.path for found in functions(path, value) if not found.doc]


def unnamed(found: Documented) -> list[str]:
    """The errors that are raised and of which the docstring names neither the class nor one it is a kind of."""
    kept = KEPT.get(found.path, set()) | ({Broken} if found.function in CHECKS else set())
    return sorted(error.__name__ for error in raised(found.function, found.owner) - kept if not says(found.doc, error))


def says(doc: str, error: type[BaseException]) -> bool:
    """Whether a docstring names an error, or what it is a kind of; to say AxonError, or Exception, is too little."""
    root = AxonError if issubclass(error, AxonError) else Exception
    kinds = {error} | {kind for kind in error.__mro__ if issubclass(kind, root)} - {root}
    return any(re.search(rf"\b{kind.__name__}\b", doc) for kind in kinds)


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
    return [name for name, text in annotations(function).items() if bare(ast.parse(text, mode="eval").body)]


def annotations(function: FunctionType) -> dict[str, str]:
    return {k: v if isinstance(v, str) else inspect.formatannotation(v) for k, v in function.__annotations__.items()}


def source(doc: str) -> str | None:
    """The arXiv id that a docstring gives with a place in the paper."""
    found = SOURCE.search(" ".join(doc.split()))
    return found["arxiv"] if found else None


def computes(found: Documented) -> bool:
    """Whether it makes tensors of tensors of real numbers, as mathematics does; an interface only says what is to."""
    if getattr(found.function, "__isabstractmethod__", False) or getattr(found.owner, "_is_protocol", False):
        return False
    texts = annotations(found.function)
    result = texts.pop("return", "")
    return any(REAL.search(text) for text in texts.values()) and SHAPED.search(result) is not None


def cites(found: Documented) -> bool:
    """Whether its docstring, that of its class, or that of its module gives a place in a paper."""
    module = sys.modules[found.function.__module__]
    return any(source(doc or "") for doc in (found.doc, inspect.getdoc(found.owner), module.__doc__))


def uncited(every: Iterable[Documented]) -> set[str]:
    return {found.path for found in every if computes(found) and not cites(found)}


@pytest.mark.parametrize("package", PACKAGES)
def test_classes_functions_methods_and_properties_have_docstrings(package):
    public = [found for module in names.public(package).values() for found in module]
    assert not [path for found in public for path in undocumented(found.path, found.value)]


@pytest.mark.parametrize("package", PACKAGES)
def test_errors_that_a_function_raises_are_named_in_its_docstring(package):
    missing = {f"{found.path}: {error}" for found in every(package) for error in unnamed(found)}
    assert not missing


@pytest.mark.parametrize("package", PACKAGES)
def test_functions_and_methods_of_tensors_state_their_shapes(package):
    missing = {f"{found.path}: {name}" for found in every(package) for name in shapeless(found.function)}
    assert not missing


@pytest.mark.parametrize("package", PACKAGES)
def test_mathematics_cites_the_place_in_the_paper_it_is_from(package):
    if any(card.entry.target.split(".")[0] == package and placeholders(card.paper) for card in installed()):
        pytest.skip(f"{package} is a draft: its card does not name the paper yet")
    others = "axon_core.testing."  # what it looks at is the mathematics of others
    missing = {path for path in uncited(every(package)) if not path.startswith(others)}
    known = {path for paths in OF_NO_PAPER.values() for path in paths if path.startswith(f"{package}.")}
    assert missing == known


def test_the_exemptions_are_needed():
    found = {found.path: found for package in PACKAGES for found in every(package)}
    assert KEPT.keys() <= found.keys()
    assert all(errors <= raised(found[path].function, found[path].owner) for path, errors in KEPT.items())


@pytest.mark.parametrize("card", installed(), ids=lambda card: card.entry.key)
def test_parts_cite_the_place_in_the_paper_they_are_from(card):
    if placeholders(card.paper):
        pytest.skip(f"{card.entry.distribution} is a draft: its card does not name the paper yet")
    groups = {e.group for e in papers.offers(card.entry.distribution)} - PRACTICAL - {"command"}
    parts = [e for g in sorted(groups) for e in discover().entries(g) if e.distribution == card.entry.distribution]
    classes = {e.target.replace(":", "."): registry_of(e.group)[e.qualified] for e in parts}
    cited = {path: source(cls.__doc__ or "") for path, cls in classes.items()}
    assert not [path for path, arxiv in cited.items() if arxiv is None]
    documents = [inspect.getdoc(cls) or "" for cls in classes.values()]
    if not parts:  # a server or an engine
        documents.append(inspect.getdoc(importlib.import_module(card.entry.target)) or "")
    assert any(card.paper.arxiv in doc for doc in documents), "none of its parts cites the paper of the card"


def test_every_installed_paper_is_looked_at():
    assert len(installed()) == len(cards())
    assert len(PACKAGES) == 1 + len(cards())
    assert sum(1 for _ in every("axon_core")) > 300


def _refuse(n: int) -> None:
    if not n:
        raise ValueError("nothing")
    _refuse(n - 1)


def _error(n: int) -> "DataError":
    return DataError(f"{n}")


class _Helper:
    def __init__(self) -> None:
        raise KeyError("helper")


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

    def too_general(self) -> None:
        """Raise an AxonError or an Exception."""
        _refuse(1)
        raise UsageError("anything")

    def rereads(self, error: AxonError) -> None:
        """Raise what it is given."""
        raise error

    def helped(self) -> None:
        """Raise what helpers raise, and theirs."""
        self._method()
        _Helper()

    def _method(self) -> None:
        _refuse(self._property)

    @property
    def _property(self) -> int:
        raise _error(1)

    def catches(self) -> None:
        """Catch what is raised, but for what is raised anew."""
        try:
            _refuse(0)
        except (TypeError, ValueError):
            pass
        with suppress(ValueError):
            _refuse(0)
        try:
            raise KeyError("again")
        except LookupError:
            raise

    @contextmanager
    def managed(self) -> Iterator[None]:
        """Yield."""
        yield
        raise RuntimeError("after")

    @classmethod
    def silent(cls) -> None: ...

    def bare(self, x: Tensor, y: "Float[Tensor, 'b n']", z: dict[str, Tensor]) -> tuple[Tensor, int] | None:
        """Take and return tensors."""

    def stated(self, *x: "Float[Tensor, 'b n']", mode: Literal["Tensor"]) -> tuple[Tensor, ...]:
        """Take and return tensors."""


class Mathematics(Example):
    """Of no paper."""

    class Config: ...

    def quiet(self) -> None:
        pass

    def double(self, x: "Float[Tensor, 'b']") -> "Float[Tensor, 'b']":
        """Return 2 x."""
        return 2 * x

    def cited(self, x: "Float[Tensor, 'b']") -> "Float[Tensor, 'b']":
        """Return 2 x (arXiv 2305.13245, Eq. 2)."""
        return 2 * x

    @abstractmethod
    def promised(self, x: "Float[Tensor, 'b']") -> "Float[Tensor, 'b']":
        """Return a number."""

    def written(self, x: "Float[Tensor, 'b']", to: Path) -> None:
        """Write it."""

    def chosen(self, n: "Int[Tensor, 'b']") -> "Float[Tensor, 'b']":
        """Return numbers."""


class Cited(Mathematics):
    """Of a paper (arXiv 2305.13245, Section 2)."""

    def double(self, x: "Float[Tensor, 'b']") -> "Float[Tensor, 'b']":
        """Return 2 x."""
        return 2 * x


def test_the_rules_find_what_they_are_for():
    found = {found.path: (unnamed(found), shapeless(found.function)) for found in functions("Example", Example)}
    assert found == {
        "Example.__init__": ([], []),
        "Example.quiet": (["ConfigError"], []),
        "Example.general": ([], []),
        "Example.too_general": (["UsageError", "ValueError"], []),
        "Example.rereads": ([], []),
        "Example.helped": (["DataError", "KeyError", "ValueError"], []),
        "Example.catches": (["KeyError"], []),
        "Example.managed": (["RuntimeError"], []),
        "Example.silent": ([], []),
        "Example.bare": ([], ["x", "return"]),
        "Example.stated": ([], []),
    }
    assert source("Source: arXiv 2305.13245,\n    Section 2.2.") == "2305.13245"
    assert source("as in (arXiv math.GT/0309136, Eq. 5)") == "math.GT/0309136"
    assert source("arXiv 2305.13245 says so. See Section 2.") is None


def test_the_rules_find_what_has_no_docstring_and_what_cites_no_paper():
    assert undocumented("Example", Example) == ["Example.silent"]
    assert undocumented("Mathematics", Mathematics) == ["Mathematics.Config"]  # `quiet` inherits its docstring
    assert uncited(functions("Mathematics", Mathematics)) == {"Mathematics.double"}
    assert uncited(functions("Cited", Cited)) == set()


def test_a_check_of_the_kit_may_raise_what_it_is_for():
    run = next(iter(CHECKS))
    assert Broken in raised(_broken) and unnamed(Documented("check", run, "", None)) == []
    assert unnamed(Documented("helper", _broken, "", None)) == ["Broken"]


def _broken() -> None:
    raise Broken("this", "that")
