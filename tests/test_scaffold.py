"""`axon new`: what it writes and refuses. As a new user goes on from there is in `test_new_user.py`."""

from __future__ import annotations

import errno
import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from new_user import digest, outside

from axon_core.cli import main
from axon_core.config import validate
from axon_core.errors import UsageError
from axon_core.papers.card import Paper, cards, find_card
from axon_core.papers.scaffold import KINDS, Project, placeholders, render, write
from axon_core.registry.registry import refresh

ROOT = Path(__file__).parents[1]
# Two sort before `axon_core` among the imports, one after it; pytest takes a class TestTimeTrainer for a test.
NAMES = {"attention": "alpha-one", "rotary": "zeta", "norm": "bare", "model": "my-model", "trainer": "test-time"}


def run(*command: str | Path, cwd: Path, site: Path | None = None) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    if site:
        environment["PYTHONPATH"] = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    arguments = [sys.executable, *map(str, command)]
    done = subprocess.run(arguments, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make one plugin of each kind outside the repository, and install them into the folder `site` beside them."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "notes.txt").write_text("mine")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for kind, name in NAMES.items():
            before = digest(folder)
            paper = ["--arxiv", "2401.01234", "--title", 'A "quoted" \\ title'] if kind == "attention" else []
            assert main(["new", name, "--kind", kind, *paper]) == 0
            assert outside(digest(folder), f"axon-{name}") == before
    pip = ["-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-index", "--no-deps"]
    projects = [folder / f"axon-{name}" for name in NAMES.values()]
    run(*pip, "--no-build-isolation", "--target", folder / "site", *projects, cwd=folder)
    return folder


@pytest.fixture
def installed(made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Put the five plugins on the path for one test."""
    monkeypatch.syspath_prepend(str(made / "site"))
    refresh()
    yield made
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(made)):
            del sys.modules[name]
    monkeypatch.undo()
    importlib.invalidate_caches()
    refresh()


def test_its_own_tests_pass(made: Path) -> None:
    folders = [made / f"axon-{name}" / "tests" for name in NAMES.values()]
    options = ["-q", "-W", "error", "--import-mode=importlib", "-p", "no:cacheprovider"]
    report = run("-m", "pytest", *options, *folders, cwd=made, site=made / "site")
    assert "skipped" not in report and " passed" in report


def test_its_card_has_what_was_given(installed: Path) -> None:
    given, left_out = find_card("alpha-one").paper, find_card("my-model").paper
    assert given and left_out
    assert (given.title, given.arxiv, given.year) == ('A "quoted" \\ title', "2401.01234", 2024)
    assert (left_out.title, left_out.arxiv) == ("My Model", "0000.00000")


@pytest.mark.parametrize(
    ("arxiv", "year"),
    [("cs/0309048", 2003), ("math.GT/0309136", 2003), ("hep-th/9901001", 1999), ("cond-mat/9108001", 1991)],
)
def test_an_arxiv_id_of_the_older_kind_is_taken(arxiv: str, year: int) -> None:
    files = render(Project("paper", "norm", arxiv=arxiv), standalone=False)
    written = validate(Paper, tomllib.loads(files["axon_paper/paper.toml"]))
    assert (written.arxiv, written.year) == (arxiv, year)
    assert f"https://arxiv.org/abs/{arxiv}" in files["README.md"]


def test_is_lint_clean_and_formatted(tmp_path: Path) -> None:
    for kind in KINDS:
        for name in ("q", NAMES[kind], f"{kind}-" + "w" * (31 - len(kind))):  # where lines break depends on the name
            write(render(Project(name, kind), standalone=True), tmp_path / f"{kind}-{name}")
    run("-m", "ruff", "check", "--no-cache", tmp_path, cwd=tmp_path)
    run("-m", "ruff", "format", "--no-cache", "--check", tmp_path, cwd=tmp_path)


def test_is_well_typed(made: Path) -> None:
    projects = [f"axon-{name}" for name in NAMES.values()]
    settings = {
        "include": [f"{project}/{project.replace('-', '_')}" for project in projects],
        "extraPaths": [*projects, str(ROOT)],
        "typeCheckingMode": "standard",
        "pythonVersion": "3.11",
        "reportIncompatibleVariableOverride": False,
    }
    (made / "types.json").write_text(json.dumps(settings))
    report = run("-m", "pyright", "-p", "types.json", "--pythonpath", sys.executable, "--outputjson", cwd=made)
    assert json.loads(report)["summary"]["filesAnalyzed"] == 3 * len(KINDS)


def test_in_the_repository_it_is_a_plugin_beside_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plugins" / "axon-gqa" / "tests").mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "axon-core"\n')
    monkeypatch.chdir(tmp_path / "plugins" / "axon-gqa" / "tests")
    assert main(["new", "alpha-one", "--kind", "attention"]) == 0
    new = tmp_path / "plugins" / "axon-alpha-one"
    assert not (new / ".github").exists() and "[tool.ruff]" not in (new / "pyproject.toml").read_text()


def test_outside_it_has_tools_and_a_workflow_of_its_own(made: Path) -> None:
    project = made / "axon-zeta"
    workflow = (project / ".github/workflows/check.yml").read_text()
    assert "axon check axon-zeta" in workflow and "${{ matrix.python }}" in workflow
    assert "[tool.ruff]" in (project / "pyproject.toml").read_text()
    assert (project / ".gitignore").is_file() and (project / "axon_zeta/py.typed").read_text() == ""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("My_Paper", "begin with a letter and not have the prefix axon-, got 'My_Paper'; choose .* 'my-paper'"),
        ("axon-paper", "got 'axon-paper'; choose another, such as 'paper'"),
        ("2paths", "got '2paths'; choose another, such as 'paths'"),
        ("a--b", "got 'a--b'; choose another, such as 'a-b'"),
        ("../up", r"got '\.\./up'; choose another, such as 'up'"),
        ("λ", "got 'λ'; choose another$"),
        ("x" * 33, "at most 32 characters, got 33; choose a shorter one"),
        ("lambda", "'lambda' is a Python keyword; choose another"),
        ("match", "'match' is a Python keyword"),
        ("random", "'random' is a module of Python's standard library"),
        ("norm", "'norm' names a part of Axon, not a paper"),
        ("core", "'core' names a part of Axon"),
        ("gqa", r"'gqa' is the plugin of 'GQA: .*' \(arXiv 2305\.13245\)"),
        ("rmsnorm", "'rmsnorm' is the plugin of 'Root Mean Square"),
    ],
)
def test_a_bad_name_is_refused(name: str, message: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new", "--kind", "norm", "--", name]) == 2
    error = capsys.readouterr().err.strip()
    assert re.search(message, error), error
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_differs_from_a_key_in_its_case_alone_is_refused() -> None:
    with pytest.raises(UsageError, match="'mha' is the attention 'MHA' of axon-transformer"):
        Project("mha", "attention")


def test_a_name_that_is_installed_is_refused(site, tmp_path: Path, monkeypatch, capsys) -> None:
    site.install(
        "axon-kites", {"axon.v1.norm": {"red_kite": "axon_kites:Kite"}, "axon.v1.paper": {"wind": "axon_kites"}}
    )
    site.install("unrelated", files={"axon_storm.py": ""})
    monkeypatch.chdir(tmp_path)
    for name, message in {
        "kites": "is the plugin axon-kites 1.0, which is installed",
        "red-kite": "is the norm 'red_kite' of axon-kites 1.0, which is installed",
        "wind": "is the paper 'wind' of axon-kites 1.0, which is installed",
        "storm": "is taken: the module axon_storm can be imported",
    }.items():
        assert main(["new", name, "--kind", "norm"]) == 2
        assert message in capsys.readouterr().err
    assert main(["new", "red-kite", "--kind", "rotary"]) == 0  # another kind's key is another name


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            ["--arxiv", "1706.03762v7"],
            "as in 2305.13245 or, until March 2007, math.GT/0309136; got '1706.03762v7'; correct it or",
        ),
        (["--arxiv", "math.GT/0309136v1"], "without a version"),
        (["--arxiv", "math.GT/0313136"], "got 'math.GT/0313136'"),
        (["--arxiv", "cs/2305.13245"], "got 'cs/2305.13245'"),
        (["--arxiv", "0309048"], "got '0309048'"),
        (["--arxiv", "2313.00001"], "got '2313.00001'"),
        (["--arxiv", "9912.12345"], "got '9912.12345'"),
        (["--arxiv", "0703.0001"], "got '0703.0001'"),
        (["--arxiv", "math.GT/0704136"], "got 'math.GT/0704136'"),
        (["--arxiv", "1412.12345"], "four digits until 2014, five since"),
        (["--arxiv", "1501.0001"], "got '1501.0001'"),
        (
            ["--title", "two\nlines"],
            r"a title must be one line of text, got 'two\nlines'; correct it or leave out --title",
        ),
        (["--title", " "], "got ' '"),
        (["--out", "not/there/yet"], "create it first"),
    ],
)
def test_a_bad_option_is_refused(option: list[str], message: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new", "paper", "--kind", "norm", *option]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_link_given_as_the_folder_is_not_followed(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert main(["new", "paper", "--kind", "norm", "--out", "link"]) == 2
    assert f"{tmp_path / 'link'} exists already, and nothing is overwritten" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


@pytest.mark.parametrize(
    ("version", "range_"),
    [("0.2.1", ">=0.2,<0.3"), ("0.2rc1", ">=0.2,<0.3"), ("1.4.dev3", ">=1.4,<2"), ("2", ">=2.0,<3"), ("unknown", "")],
)
def test_the_core_it_needs_is_compatible_with_the_installed_one(version: str, range_: str, monkeypatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: version)
    files = render(Project("paper", "norm"), standalone=False)
    assert f'"axon-core{range_}"' in files["pyproject.toml"]


def test_what_the_training_needs_is_installed_first(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AXON_DISABLE_PLUGINS", "axon-xllama")
    refresh()
    try:
        assert main(["new", "paper", "--kind", "norm"]) == 0
        said = capsys.readouterr().out
        assert "\n  pip install axon-xllama\n  axon train xllama-tiny --set model.norm.type=paper\n" in said
    finally:
        monkeypatch.delenv("AXON_DISABLE_PLUGINS")
        refresh()
    assert main(["new", "other", "--kind", "norm"]) == 0
    assert "axon-xllama" not in capsys.readouterr().out


def test_a_card_is_a_draft_until_it_is_written() -> None:
    text = render(Project("paper", "norm"), standalone=False)["axon_paper/paper.toml"]
    written = tomllib.loads(text)
    wanted = ["look_up main-result", "look_up identity", "look_up ablation"]
    left = ["authors", "arxiv", "summary", "claim scale-invariance: where", *wanted]
    assert placeholders(validate(Paper, written)) == left
    written |= {"authors": ["Ada"], "arxiv": "2401.01234", "summary": "It is so."}
    written["claim"][0]["where"] = "Section 2, Eq. 3"
    assert placeholders(validate(Paper, written)) == wanted
    del written["look_up"]
    assert placeholders(validate(Paper, written)) == []
    assert all(card is None or not placeholders(card) for card in (c.paper for c in cards()))


def test_what_is_to_be_looked_up_is_not_run(installed: Path, tmp_path: Path, capsys) -> None:
    assert main(["reproduce", "bare", "--out", str(tmp_path), "--json"]) == 0
    found = {result["claim"]: result for result in json.loads(capsys.readouterr().out)}
    assert found.pop("scale-invariance")["verdict"] == "reproduced"
    assert found.keys() == {"main-result", "identity", "ablation"}
    assert {(result["verdict"], result["measured"]) for result in found.values()} == {("not run", "to be looked up")}
    assert main(["check", "axon-bare"]) == 0
    assert "look_up main-result, look_up identity, look_up ablation" in capsys.readouterr().out


@pytest.mark.parametrize("there", ["empty folder", "full folder", "file", "dangling link"])
def test_nothing_is_overwritten(there: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    target = tmp_path / "axon-paper"
    if there == "file":
        target.write_text("mine")
    elif there == "dangling link":
        target.symlink_to(tmp_path / "gone")
    else:
        target.mkdir()
        if there == "full folder":
            (target / "pyproject.toml").write_text("mine")
    before = digest(tmp_path)
    assert main(["new", "paper", "--kind", "norm"]) == 2
    assert (
        f"{target} exists already, and nothing is overwritten; choose another folder with --out"
        in capsys.readouterr().err
    )
    assert digest(tmp_path) == before
    assert main(["new", "paper", "--kind", "norm", "--out", "elsewhere"]) == 0
    assert (tmp_path / "elsewhere/axon_paper/norm.py").is_file()


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch, capsys) -> None:
    written: list[Path] = []
    write_text = Path.write_text

    def full(self: Path, *args: str, **options: str) -> int:
        if len(written) == 5:
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        written.append(self)
        return write_text(self, *args, **options)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "write_text", full)
    assert main(["new", "paper", "--kind", "norm"]) == 1
    assert len(written) == 5 and "No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_it_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from axon_core.cli import main; assert main(sys.argv[1:]) == 0; assert 'torch' not in sys.modules"
    )
    run("-c", code, "new", "paper", "--kind", "model", cwd=tmp_path)
