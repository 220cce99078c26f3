"""What contributors work with: fragments of changelogs, oldest versions, hooks, make's targets, workflows and forms."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import changelog  # noqa: E402
import oldest  # noqa: E402

MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
TARGETS = set(re.findall(r"^\.PHONY: (.*)", MAKEFILE, re.MULTILINE)[0].split())
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.fixture
def root(tmp_path):
    """A repository with a core, one plugin and a fragment for each."""
    for folder in (tmp_path, tmp_path / "plugins" / "axon-a"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\n- Old.\n\n## 0.1.0\n\nFirst.\n")
    changes = tmp_path / "changes"
    changes.mkdir()
    (changes / "README.md").write_text("How.\n")
    (changes / "axon-core.faster.md").write_text("A step\nis faster.\n")
    (changes / "axon-a.new-option.md").write_text(f"- `x` is {'long ' * 30}\n")
    return tmp_path


def test_a_release_takes_the_fragments_of_its_package_alone(root):
    assert changelog.main(["axon-core", "0.2.0"], root) == 0
    text = (root / "CHANGELOG.md").read_text()
    assert text == "# Changelog\n\n## 0.2.0\n\n- Old.\n- A step is faster.\n\n## 0.1.0\n\nFirst.\n"
    assert [file.name for file in sorted((root / "changes").iterdir())] == ["README.md", "axon-a.new-option.md"]
    assert "- Old." in (root / "plugins/axon-a/CHANGELOG.md").read_text()
    with pytest.raises(ValueError, match=r"already has a section 0\.2\.0"):
        changelog.main(["axon-core", "0.2.0"], root)
    with pytest.raises(ValueError, match=r"so 0\.3\.0 is empty"):
        changelog.main(["axon-core", "0.3.0"], root)


def test_what_is_pending_is_printed_by_package_and_nothing_changes(root, capsys):
    before = {file: file.read_bytes() for file in root.rglob("*.md")}
    assert changelog.main([], root) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "axon-a" and lines[1].startswith("- `x` is long") and lines[2].startswith("  long")
    assert lines[-3:] == ["axon-core", "- A step is faster.", ""] and max(map(len, lines)) <= 120
    assert before == {file: file.read_bytes() for file in root.rglob("*.md")}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("axon-core.md", "x", "is named <distribution>"),
        ("axon-core.a b.md", "x", "is named <distribution>"),
        ("axon-b.x.md", "x", "no package axon-b"),
        ("axon-core.x.md", " \n", "is empty"),
    ],
)
def test_a_fragment_that_no_release_would_take_is_refused(root, name, text, message):
    (root / "changes" / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        changelog.pending(root)


def test_the_fragments_here_are_taken_by_releases_of_packages_here():
    changelog.pending(ROOT)


def test_every_package_needs_the_torch_that_is_tested():
    found = oldest.oldest(ROOT)
    pinned = re.findall(r"^torch==(.*)", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    numbers = [tuple(map(int, version.split("."))) for version in (found["torch"], *pinned)]
    assert len(pinned) == 1 and (2, 13) <= numbers[0] <= numbers[1]
    needed = f'"torch>={found["torch"]}"'
    kinds = list((ROOT / "axon_core").rglob("templates/*/kind.toml"))
    assert len(kinds) == 5 and all(needed in kind.read_text("utf-8") for kind in kinds)


def test_packages_that_disagree_about_the_oldest_torch_are_refused(tmp_path):
    for folder, bound in ((tmp_path, "2.13"), (tmp_path / "plugins" / "axon-a", "2.12")):
        folder.mkdir(parents=True, exist_ok=True)
        lines = f'[project]\nrequires-python = ">=3.11"\ndependencies = ["torch>={bound}", "torchvision>=1"]\n'
        (folder / "pyproject.toml").write_text(lines)
    with pytest.raises(ValueError, match=r"bound of torch, got \['2.12', '2.13'\]"):
        oldest.oldest(tmp_path)


def test_hooks_before_a_commit_are_the_tools_of_make_lint_and_download_nothing():
    configured = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    hooks = [hook for repository in configured["repos"] for hook in repository["hooks"]]
    assert [repository["repo"] for repository in configured["repos"]] == ["local"]
    assert {"ruff", "ruff-format"} <= {hook["id"] for hook in hooks}
    for hook in hooks:
        program = hook["entry"].split()[0]
        tool = program.removeprefix(".venv/bin/")
        assert hook["language"] == "system" and program != tool and f"$(BIN)/{tool}" in MAKEFILE


def test_make_help_has_a_line_for_every_target():
    shown = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.split()[0] for line in shown.splitlines()} == TARGETS
    assert all(len(line.split(maxsplit=1)[1]) > 10 for line in shown.splitlines())


def test_workflows_run_targets_and_tools_that_exist():
    texts = [path.read_text("utf-8") for path in WORKFLOWS]
    assert {target for text in texts for target in re.findall(r"\bmake ([a-z]+)", text)} <= TARGETS
    tools = {tool for text in texts for tool in re.findall(r"tools/(\w+\.py)", text)}
    assert {"oldest.py", "release.py"} <= tools and all((ROOT / "tools" / tool).is_file() for tool in tools)
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text("utf-8"))["jobs"]
    assert {"lint", "test", "oldest", "docs"} <= set(jobs)


def test_forms_for_issues_ask_for_what_can_be_answered():
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text("utf-8"))
        if path.name != "config.yml":
            assert form["name"] and form["description"]
            assert all(field["attributes"]["label"] for field in form["body"])


def test_slow_tests_are_known_to_make_quick():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["pytest"]["ini_options"]
    assert [marker.partition(":")[0] for marker in options["markers"]] == ["slow"]
    assert '-m "not slow"' in MAKEFILE.partition("\nquick:")[2].partition("\n\n")[0]
    marked = [path for path in ROOT.glob("tests/test_*.py") if "pytest.mark.slow" in path.read_text("utf-8")]
    assert len(marked) > 1  # this file names it, and others have it
