"""`make affected` runs the tests a change touches: no fewer, and not all."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tools" / "affected.py"
SPEC = importlib.util.spec_from_file_location("affected", SCRIPT)
affected = importlib.util.module_from_spec(SPEC)
sys.modules["affected"] = affected  # dataclasses look their module up
SPEC.loader.exec_module(affected)


def project(root: Path, folder: str, name: str, needs: str = "", extra: str = "") -> None:
    place = root / folder
    (place / "tests").mkdir(parents=True, exist_ok=True)
    (place / "pyproject.toml").write_text(
        f'[project]\nname = "{name}"\ndependencies = [{needs}]\n[project.optional-dependencies]\ntest = [{extra}]\n'
    )
    (place / "tests" / f"test_{name[5:]}.py").write_text("def test_it():\n    pass\n")


def files(*subjects: str) -> list[str]:
    return sorted(f"tests/test_{subject}.py" for subject in subjects)


@pytest.fixture
def root(tmp_path):
    """A repository in which c needs b, b needs a, and d needs nothing but the core; e's tests need a."""
    project(tmp_path, "", "axon-core")
    project(tmp_path, "plugins/axon-a", "axon-a", '"axon-core>=0.1,<0.2"')
    project(tmp_path, "plugins/axon-b", "axon-b", '"axon-core>=0.1", "axon-a[x]>=0.1; python_version > \'3\'"')
    project(tmp_path, "plugins/axon-c", "axon-c", '"axon-b"')
    project(tmp_path, "plugins/axon-d", "axon-d", '"axon-core", "torch"')
    project(tmp_path, "plugins/axon-e", "axon-e", '"axon-core"', '"axon-a"')
    with (tmp_path / "plugins/axon-d/pyproject.toml").open("a") as file:
        file.write('[project.entry-points."axon.v1.norm"]\nround_off = "axon_d:D"\n')
    (tmp_path / "plugins/axon-d/axon_d/recipes").mkdir(parents=True)
    (tmp_path / "plugins/axon-d/axon_d/recipes/d-small.toml").write_text("")
    for subject in (*affected.WALKS, "repository"):
        (tmp_path / "tests" / f"test_{subject}.py").write_text("def test_it():\n    pass\n")
    (tmp_path / "tests" / "test_across.py").write_text("import axon_b\n")
    (tmp_path / "tests" / "test_alone.py").write_text("# nothing of axon_bb\n")
    (tmp_path / "tests" / "test_key.py").write_text("KEY = 'round_off'\n")
    (tmp_path / "tests" / "test_recipe.py").write_text("RECIPE = 'd-small'\n")
    return tmp_path


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (["plugins/axon-a/axon_a/x.py"], ["plugins/axon-a", "plugins/axon-b", "plugins/axon-c", "plugins/axon-e",
                                          *files("across", *affected.WALKS)]),
        (["plugins/axon-b/axon_b/x.py"], ["plugins/axon-b", "plugins/axon-c", *files("across", *affected.WALKS)]),
        (["plugins/axon-c/axon_c/x.py"], ["plugins/axon-c", *files(*affected.WALKS)]),
        (["plugins/axon-a/README.md"], ["plugins/axon-a", *files(*affected.PAGES)]),
        (["plugins/axon-a/CHANGELOG.md"], ["plugins/axon-a", *files("affected", "architecture", *affected.PAGES)]),
        (["plugins/axon-d/pyproject.toml"], ["plugins/axon-d", *files("key", "recipe", "repository", *affected.WALKS)]),
        (["tests/test_alone.py"], files("alone", "readme")),
        (["tests/test_deleted.py"], files("readme")),
        (["tests/conftest.py"], ["tests"]),
        (["tests/conftest.py", "plugins/axon-d/axon_d/x.py"], ["plugins/axon-d", "tests"]),
        (["axon_core/config.py"], ["tests", "plugins", "axon_core"]),
        (["constraints.txt", "plugins/axon-d/x.py"], ["tests", "plugins", "axon_core"]),
        (["docs/_ext/axon_docs/names.py"], files("commands", "docs", "docstrings", "readme")),
        (["README.md"], files("commands", "docs", "docstrings", "readme")),
        (["tools/release.py"], files("affected", "repository")),
        (["changes/axon-a.x.md"], files("commands", "docs", "docstrings", "readme", "repository")),
        ([".github/workflows/release.yml"], files("affected", "repository")),
        (["CHANGELOG.md"], files("affected", "architecture", "commands", "docs", "docstrings", "readme")),
        (["LICENSE"], []),
    ],
)  # fmt: skip
def test_a_change_touches_its_packages_their_dependents_and_tests_that_name_them(root, changed, expected):
    assert affected.tests(changed, root) == expected


def test_a_test_that_looks_at_every_package_is_known_to():
    every = re.compile(r"glob\(.plugins/|packages\(|papers\.installed\(|= conformance\(\)|registry\.entries\(\)")
    walks = {file.stem for file in ROOT.glob("tests/test_*.py") if every.search(file.read_text("utf-8"))}
    assert walks == {f"test_{subject}" for subject in affected.WALKS}


def test_dependencies_are_those_of_the_pyprojects():
    known = affected.packages(ROOT)
    assert {"axon-gqa", "axon-rmsnorm", "axon-roformer", "axon-core"} <= known["axon-xllama"].needs
    assert "axon-xllama" in affected.with_dependents({"axon-gqa"}, known)
    assert affected.with_dependents({"axon-core"}, known) == set(known)
    assert {"rmsnorm", "xllama-tiny"} <= known["axon-rmsnorm"].offers | known["axon-xllama"].offers


@pytest.mark.skipif(not shutil.which("git"), reason="there is no git")
def test_it_finds_committed_uncommitted_and_new_files_and_fails_with_the_tests(root):
    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)

    def run(*arguments):
        command = [sys.executable, str(SCRIPT), "--root", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=root)

    git("init", "-b", "main")
    git("add", ".")
    git("commit", "-m", "start")
    assert "nothing" in run("main", "--list").stdout
    git("checkout", "-b", "work")
    (root / "plugins/axon-d/new.py").write_text("")
    assert run("main", "--list").stdout.split()[0] == "plugins/axon-d"
    git("add", ".")
    git("commit", "-m", "more")
    (root / "plugins/axon-c/pyproject.toml").write_text('[project]\nname = "axon-c"\n')
    assert run("main", "--list").stdout.split()[:2] == ["plugins/axon-c", "plugins/axon-d"]
    passed = run("main", "--", "-q", "-p", "no:cacheprovider")
    assert passed.returncode == 0 and f"{3 + len(affected.WALKS)} passed" in passed.stdout
    (root / "plugins/axon-d/tests/test_d.py").write_text("def test_it():\n    raise ValueError\n")
    assert run("main", "--", "-q", "-p", "no:cacheprovider").returncode == 1
    assert run("--", "-q", "-p", "no:cacheprovider").returncode == 1  # main by default, as `make affected` calls it
    assert run("-q").returncode == 2  # no option of its own
    unknown = run("nowhere", "--list")
    assert unknown.returncode == 1 and "nowhere" in unknown.stderr and "Traceback" not in unknown.stderr


def release(tag):
    return subprocess.run([sys.executable, ROOT / "tools" / "release.py", tag], capture_output=True, text=True)


@pytest.mark.parametrize("name", affected.packages(ROOT))
def test_every_package_can_be_released_by_a_tag_of_its_version(name):
    folder = affected.packages(ROOT)[name].folder or "."
    version = affected.tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]["version"]
    assert f"folder={folder}\n" in release(f"{name}-v{version}").stdout


@pytest.mark.parametrize(
    ("tag", "words"),
    [("axon-gqa-v99.0.0", "says"), ("axon-nothing-v0.1.0", "there is none"), ("v0.1.0", "<package>-v<version>")],
)
def test_a_tag_that_names_no_package_or_another_version_is_refused(tag, words):
    refused = release(tag)
    assert refused.returncode == 1 and words in refused.stderr and "Traceback" not in refused.stderr


def test_a_release_tries_its_wheel_and_sources_before_they_are_published():
    steps = (ROOT / ".github/workflows/release.yml").read_text("utf-8")
    order = [
        "-m build --outdir dist",
        "in dist/*.whl dist/*.tar.gz",
        '--force-reinstall "$file"',
        '/.venv/bin/axon" list',
        "gh-action-pypi-publish",
    ]
    places = [steps.index(part) for part in order]
    assert places == sorted(places)
