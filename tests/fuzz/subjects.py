"""What is changed, the command that reads it, and what must hold afterwards."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from hypothesis import strategies as st

from axon_core.registry.registry import refresh
from fuzz import formats
from fuzz.bases import RECIPES
from fuzz.copies import clear, copy
from fuzz.edits import VALUES, WORDS, Edit, Splice, edited, nodes, spliced, splices, tree_edits
from fuzz.formats import Format
from fuzz.running import Broken, Outcome, run

_LARGE = re.compile(r"(?<![0-9_])(?!10000\.0(?![0-9]))[0-9]{4}|[1-9]e\+?[0-9]")  # 10000.0 is a rotary base


class Case(NamedTuple):
    """One change of one file."""

    file: str
    changes: Sequence[Edit] | Sequence[Splice]


@dataclass(frozen=True)
class Subject:
    """A kind of input.

    The changed file is in the folder `case`, with everything that lies beside it; results go to `case/out`.
    """

    name: str
    share: int
    """How many of 100 cases are of this kind."""
    files: dict[str, Format | None]
    """The files that are changed, and what they are where they are not read as bytes."""
    commands: Callable[[str], list[list[str]]]
    """Returns the commands that read the file of that name."""
    check: Callable[[str, Outcome], None]
    """Checks what each command left, of a file whose bytes are others than before."""

    def cases(self) -> st.SearchStrategy[Case]:
        """Draw a case."""
        return st.sampled_from(sorted(self.files)).flatmap(
            lambda file: st.builds(Case, st.just(file), st.one_of(tree_edits, splices) if self.files[file] else splices)
        )

    def run(self, case: Case) -> None:
        """Do a case in the current folder, in which `bases.make` was; raises `Broken`."""
        original = Path(case.file).read_bytes()
        data = changed(original, case, self.files[case.file])
        top, nested, _ = case.file.partition("/")
        clear(Path("case"), keep=top)
        if nested:
            copy(Path(top), Path("case", top))
        Path("case", case.file).write_bytes(data)
        self.prepare()
        for command in self.commands(case.file):
            outcome = run(command, self.asks_much(data))
            no_leftovers(Path("case"))
            if data != original:
                self.check(case.file, outcome)

    def prepare(self) -> None:
        """Do what must be done between the change and the commands."""

    def asks_much(self, data: bytes) -> bool:
        """Whether a changed file may rightly need more memory than there is."""
        return False


class Recipes(Subject):
    """Recipes, which alone say how large a model, a batch or a length is to be; all other inputs are compared first."""

    def asks_much(self, data: bytes) -> bool:
        """Whether a large number stands in it."""
        return _LARGE.search(data.decode("utf-8", "replace")) is not None


class Plugins(Subject):
    """A plugin in a folder of its own on `sys.path`, which is damaged; the others must still be listed."""

    def prepare(self) -> None:
        """Have the folder searched anew."""
        os.environ["AXON_DISABLE_PLUGINS"] = "axon-ddpm,axon-instructgpt,axon-ppo,axon-transformer"  # slow to list
        site = os.path.abspath("case/site")
        if site not in sys.path:
            sys.path.insert(0, site)
        sys.path_importer_cache.pop(site, None)
        for name in [name for name in sys.modules if name.partition(".")[0] == "fuzz_nonsense"]:
            del sys.modules[name]
        refresh()


@dataclass(frozen=True)
class Options:
    """Values of `--set`, for every recipe."""

    name: str
    share: int

    def cases(self) -> st.SearchStrategy[tuple[str, list[str]]]:
        """Draw a recipe's name, and one or two values that are set in it."""
        return st.sampled_from(sorted(RECIPES)).flatmap(
            lambda name: st.tuples(st.just(name), st.lists(_settings(RECIPES[name]), min_size=1, max_size=2))
        )

    def run(self, case: tuple[str, list[str]]) -> None:
        """Do a case in the current folder, in which `bases.make` was; raises `Broken`."""
        name, overrides = case
        clear(Path("case"))
        run(_trained(f"{name}.toml", *overrides), any(map(_LARGE.search, overrides)))
        no_leftovers(Path("case"))


def _settings(recipe: object) -> st.SearchStrategy[str]:
    places = [".".join(map(str, path)) for path in nodes(recipe)]
    more = [
        "precision",
        "device",
        "save_every",
        "eval_every",
        "keep_checkpoints",
        "eval_tokens",
        "accumulate",
        "warmup",
        "type",
    ]
    place = st.one_of(st.sampled_from([*places, *(f"trainer.{name}" for name in more)]), st.sampled_from(WORDS))
    literal = st.sampled_from(VALUES).map(formats.toml_value)
    damaged = st.builds(
        lambda text, changes: reduce(spliced, changes, text.encode()).decode("utf-8", "surrogateescape"),
        literal,
        splices,
    )
    value = st.one_of(literal, damaged, st.sampled_from(WORDS))
    return st.builds(lambda place, value: f"{place}={value}", place, value)


def changed(data: bytes, case: Case, format: Format | None) -> bytes:
    """Return the bytes of the changed file."""
    if case.changes and isinstance(case.changes[0], Splice):
        for splice in case.changes:
            data = spliced(data, splice)
        return data
    assert format is not None
    tree = format.read(data)
    for edit in case.changes:
        tree = edited(tree, edit)
    return format.write(tree, data)


def no_leftovers(folder: Path) -> None:
    """Check that nothing is half written: no draft, no lock, and all sums are right of what was written now."""
    names = [name for _, folders, files in os.walk(folder) for name in (*folders, *files)]
    left = [name for name in names if name.startswith(".unfinished-") or name.endswith(".lock")]
    if left:
        raise Broken(f"left over: {left}")
    for manifest in (folder / "out").rglob("manifest.json"):
        for name, checksum in json.loads(manifest.read_text())["sha256"].items():
            if sha256((manifest.parent / name).read_bytes()).hexdigest() != checksum:
                raise Broken(f"written, but not whole: {manifest.parent / name}")


def _nothing(file: str, outcome: Outcome) -> None:
    """Require nothing more: the changed file may be as good as it was."""


def _refused(file: str, outcome: Outcome) -> None:
    """Require that a file is refused of which a manifest has the sum, or a config, or the file itself."""
    bare = file.startswith("bare/") and not file.endswith(".safetensors")
    covered = not bare and not file.endswith(("metrics.jsonl", "manifest.json", "run.json"))
    if covered and not outcome.code:
        raise Broken(f"{file} was changed, and is accepted:\n{outcome.text}")


def _loads(file: str, outcome: Outcome) -> None:
    """Require that what was imported is whole or not there, and of a .pth file the tensors that were in it."""
    out = Path("case/out")
    if outcome.code:
        if out.exists() and any(out.iterdir()):
            raise Broken(f"refused, but {out} is there")
        return
    again = run(["generate", "case/out", "--prompt", "a", "--max-new-tokens", "1", "--json"])
    if again.code and "no text" not in again.text:
        raise Broken(f"imported, but does not load: {again.text}")
    if file.endswith(".pth") and Path("case/out/model.safetensors").read_bytes() != _imported():
        raise Broken("the tensors are others than those that were saved")


def _imported() -> bytes:
    if not Path("imported").exists():
        run(["import", "meta", "--out", "imported", "--context", "8"])
    return Path("imported/model.safetensors").read_bytes()


def _rows(file: str, outcome: Outcome) -> None:
    """Require whole rows of results."""
    out = Path("case/out")
    for line in out.read_bytes().splitlines(keepends=True) if out.exists() else ():
        if not line.endswith(b"\n") or not json.loads(line).keys() >= {"id", "text", "tokens"}:
            raise Broken(f"a row that is not whole: {line!r}")


def _trained(recipe: str, *overrides: str) -> list[str]:
    sets = [word for text in overrides for word in ("--set", text)]
    return ["train", recipe, "--out", "case/out", "--stop-at", "1", *sets]


def _model(file: str) -> list[list[str]]:
    folder = file.partition("/")[0]
    return [["generate", f"case/{folder}", "--prompt", "the", "--max-new-tokens", "2"]]


def _run(file: str) -> list[list[str]]:
    if "/model/" in file and "checkpoints" not in file:
        return [["generate", "case/run", "--prompt", "the", "--max-new-tokens", "2"]]
    if "checkpoints" in file:
        return [["train", "--resume", "--out", "case/run", "--stop-at", "3"]]
    return [["evaluate", "case/run"], ["train", "--resume", "--out", "case/run", "--stop-at", "3"]]


def _prompts(file: str) -> list[list[str]]:
    return [["generate", "run", "--input", f"case/{file}", "--output", "case/out", "--max-new-tokens", "1"]]


def _preferences(file: str) -> list[list[str]]:
    recipe = "preferences" if file == "rows.jsonl" else "ranks"
    return [_trained(f"{recipe}.toml", f"data.path=case/{file}")]


def _pictures(file: str) -> list[list[str]]:
    return [_trained("pictures.toml", f"data.path=case/{file.partition('/')[0]}")]


def _others_listed(file: str, outcome: Outcome) -> None:
    """Require that the other plugins are used as before."""
    if outcome.err.startswith("Error") or outcome.code == 2:
        raise Broken(f"a damaged plugin ends a command of the others:\n{outcome.text}")


def _listings(file: str) -> list[list[str]]:
    if "dist-info" in file:
        return [["list"], ["doctor"]]
    return [["recipes"], ["search", "nonsense"]] if "recipes" in file else [["papers"], ["info", "GQA"]]


def _import(file: str) -> list[list[str]]:
    return [["import", f"case/{file.partition('/')[0]}", "--out", "case/out", "--context", "8"]]


_MODEL = {"config.json": formats.JSON, "model.safetensors": formats.SAFETENSORS}
_CHECKPOINT = "run/checkpoints/step-2/"

SUBJECTS: list[Subject | Options] = [
    Options("settings", 20),
    Recipes(
        "recipes",
        12,
        {f"{name}.toml": formats.TOML for name in RECIPES},
        lambda file: [_trained(f"case/{file}")],
        _nothing,
    ),
    Subject(
        "models",
        12,
        {
            f"{folder}/{name}": form
            for folder in ("bare", "model")
            for name, form in {**_MODEL, "tokenizer.model": None}.items()
        },
        _model,
        _refused,
    ),
    Subject(
        "runs",
        12,
        {
            "run/run.json": formats.JSON,
            "run/metrics.jsonl": formats.JSON_LINES,
            **{f"run/model/{name}": form for name, form in {**_MODEL, "tokenizer.json": formats.JSON}.items()},
            f"{_CHECKPOINT}manifest.json": formats.JSON,
            f"{_CHECKPOINT}state.json": formats.JSON,
            f"{_CHECKPOINT}tensors.safetensors": formats.SAFETENSORS,
            f"{_CHECKPOINT}model/config.json": formats.JSON,
            f"{_CHECKPOINT}model/model.safetensors": formats.SAFETENSORS,
        },
        _run,
        _refused,
    ),
    Subject(
        "imports",
        13,
        {
            "hf/config.json": formats.JSON,
            "hf/model.safetensors": formats.SAFETENSORS,
            "hf/tokenizer.model": None,
            "meta/params.json": formats.JSON,
            "meta/consolidated.00.pth": None,
            "meta/tokenizer.model": None,
        },
        _import,
        _loads,
    ),
    Subject("prompts", 9, {"prompts.txt": None, "prompts.jsonl": formats.JSON_LINES}, _prompts, _rows),
    Subject(
        "preferences",
        11,
        {"rows.jsonl": formats.JSON_LINES, "ranks.jsonl": formats.JSON_LINES},
        _preferences,
        _nothing,
    ),
    Subject(
        "pictures",
        8,
        {"pictures.npz": formats.ARRAYS, "photos/0/0.png": None, "photos/1/1.gif": None, "photos/0/2.jpg": None},
        _pictures,
        _nothing,
    ),
    Plugins(
        "plugins",
        3,  # each scans every installed distribution anew
        {
            "site/fuzz_nonsense-1.0.dist-info/entry_points.txt": formats.ENTRY_POINTS,
            "site/fuzz_nonsense-1.0.dist-info/METADATA": formats.METADATA,
            "site/fuzz_nonsense/paper.toml": formats.TOML,
            "site/fuzz_nonsense/recipes/nonsense.toml": formats.TOML,
        },
        _listings,
        _others_listed,
    ),
]
