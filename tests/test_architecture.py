"""What holds the parts apart: the core names no paper, and every distribution declares and ships what it uses."""

import ast
import importlib.util
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLUGINS = sorted(path for path in ROOT.glob("plugins/axon-*") if path.is_dir())
PROJECTS = [ROOT, *PLUGINS]
MODULE_OF = {"axon-core": "axon_core"} | {path.name: path.name.replace("-", "_") for path in PLUGINS}
IMPORTED_AS = {"pillow": "PIL", "scikit-learn": "sklearn"}
BUILT_ON = {
    "axon-advise": ["axon_dpo", "axon_instructgpt", "axon_ppo"],
    "axon-ddpm": ["axon_llamachat"],
    "axon-denseformer": ["axon_xllama"],
    "axon-instructgpt": ["axon_dpo"],
    "axon-llamachat": ["axon_eet"],
    "axon-lora": ["axon_xllama"],
    "axon-mistral": ["axon_gqa", "axon_xllama"],
    "axon-mixtral": ["axon_xllama"],
    "axon-overtokenized": ["axon_xllama"],
    "axon-qlora": ["axon_lora"],
    "axon-resformer": ["axon_gqa", "axon_xllama"],
    "axon-transformer": ["axon_llamachat"],
    "axon-tsm": ["axon_xllama"],
    "axon-yarn": ["axon_roformer"],
}
"""What a plugin is made for, where no name could choose it: a server and its engine, pages and what shows them, the
frequencies and attentions that another paper changes, and the model whose feed-forwards, checkpoints and other parts it
adds, or whose matrices PEFT's files name; the adapter that another paper puts on fewer bits; the environments in which
a learner is advised; and losses of preferences, which reward models share, and the stages of a pipeline to which raters
add theirs."""


def project(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def package(folder: Path) -> Path:
    return folder / MODULE_OF[project(folder)["name"]]


def requirement(line: str) -> str:
    return re.match(r"[A-Za-z0-9._-]+", line)[0].lower()


def imported(source: Path) -> set[str]:
    """The top-level modules a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def identifiers(source: Path) -> set[str]:
    """The words of which a file's names are made: arguments, variables, attributes, functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        match node:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name) | ast.FunctionDef(name=name):
                found.add(name)
    return found


def test_the_core_names_no_paper():
    parts = {
        f"axon.v1.{kind}"
        for kind in ("attention", "rotary_embedding", "norm", "model", "trainer", "quantization", "paper")
    }
    groups = [group for path in PLUGINS for group in project(path)["entry-points"].items()]
    names = {entry for group, entries in groups if group in parts for entry in entries}
    # Words that are keys as well: these, and those of the core's own vocabulary, such as `cache` or `mask`.
    used = Counter(word for source in package(ROOT).rglob("*.py") for word in identifiers(source))
    ordinary = {"linear", "dynamic", "rotary", "reward", "cwd"} | {word for word, files in used.items() if files >= 5}
    assert not ordinary & {"gqa", "xllama", "rmsnorm", "ddpm"}
    words = re.compile(rf"\b({'|'.join(map(re.escape, sorted(names - ordinary)))})\b")
    found = [
        f"{source.relative_to(ROOT)}:{number}: {line.strip()}"
        for source in package(ROOT).rglob("*.py")
        for number, line in enumerate(source.read_text(encoding="utf-8").splitlines(), 1)
        if words.search(line) and "causal_lm" not in line
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("folder", PROJECTS, ids=lambda path: path.name)
def test_everything_imported_is_declared(folder):
    facts = project(folder)
    optional = {"matplotlib"} | ({"pytest", "axon_core"} if folder == ROOT else set())
    own = MODULE_OF[facts["name"]]
    extras = (line for lines in facts.get("optional-dependencies", {}).values() for line in lines)
    declared = {requirement(line) for line in [*facts["dependencies"], *extras]}
    allowed = (
        set(sys.stdlib_module_names)
        | {own}
        | optional
        | {(MODULE_OF | IMPORTED_AS).get(name, name) for name in declared}
    )
    if "pydantic" in declared:
        allowed.add("pydantic_core")  # pydantic's own, pinned by it
    used = {module for source in package(folder).rglob("*.py") for module in imported(source)}
    assert used - allowed == set()
    if folder != ROOT:
        assert "axon-core" in declared


@pytest.mark.parametrize("folder", PLUGINS, ids=lambda path: path.name)
def test_a_plugin_takes_other_papers_parts_from_the_registry_alone(folder):
    others = set(MODULE_OF.values()) - {"axon_core", MODULE_OF[folder.name], *BUILT_ON.get(folder.name, ())}
    assert not {module for source in package(folder).rglob("*.py") for module in imported(source)} & others


@pytest.mark.parametrize("folder", PROJECTS, ids=lambda path: path.name)
def test_a_distribution_holds_its_package_alone(folder, tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path)]
    subprocess.run(build, cwd=folder, check=True, capture_output=True, text=True)
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    own = package(folder)
    files = {
        path.relative_to(folder).as_posix()
        for path in own.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert shipped == files
    with tarfile.open(sdist) as archive:
        folders = {Path(name).parts[1] for name in archive.getnames()}
    assert {name for name in folders if "." not in name} <= {own.name, "LICENSE", "PKG-INFO", "tests"}


def test_versions_agree_with_changelogs():
    for folder in PROJECTS:
        changelog = (folder / "CHANGELOG.md").read_text(encoding="utf-8")
        assert f"## {project(folder)['version']}\n" in changelog, folder


def imports_tool():
    """The script `tools/imports.py`."""
    spec = importlib.util.spec_from_file_location("imports_tool", ROOT / "tools/imports.py")
    spec.loader.exec_module(made := importlib.util.module_from_spec(spec))
    return made


@pytest.mark.parametrize("folder", PROJECTS, ids=lambda path: path.name)
def test_no_imports_form_a_cycle(folder):
    tool = imports_tool()
    assert tool.cycles(tool.graph(package(folder))) == []


def test_a_cycle_is_found_wherever_the_import_stands(tmp_path):
    tool = imports_tool()
    for name, text in {
        "__init__": "",
        "a": "def f():\n    from p import b",
        "b": "from p.c import x",
        "c": "if TYPE_CHECKING:\n    from .a import f",
        "d": "from p.a import f",
    }.items():
        (tmp_path / "p").mkdir(exist_ok=True)
        (tmp_path / f"p/{name}.py").write_text(text)
    edges = tool.graph(tmp_path / "p")
    assert tool.cycles(edges) == [["p.a", "p.b", "p.c"]]
    edges["p.c"].clear()
    assert tool.cycles(edges) == [] and tool.levels(edges) == [["p", "p.c"], ["p.b"], ["p.a"], ["p.d"]]


def test_imports_point_one_way():
    tool = imports_tool()
    assert tool.LAZY == {("axon_core.interfaces.model", "axon_core.checkpoint.models")}
    edges = tool.graph(package(ROOT))
    assert tool.against_order(edges) == []
    assert {tool.room(name) for name in edges if "." in name} == set(tool.ORDER)
    assert tool.against_order({"axon_core.nn.linear": ["axon_core.training.loop"]}) != []
