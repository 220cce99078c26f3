"""From idea to a trained model, as a new user goes: in a clone of the repository, and in an empty folder.

For each of the five kinds: `axon new`, `pip install -e`, `axon check`, `axon list`, X-Llama's mapping of attentions,
a training; and no file outside the new folders is another than before.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from new_user import Lab, clone, digest, outside, sources_of

from axon_core.papers.scaffold import KINDS

# Ordinary words, a name that pytest would take for a test's, names before and after `axon_core` among the imports.
NAMES = {"attention": "cache", "rotary": "zeta", "norm": "mask", "model": "alpha-one", "trainer": "test-time"}
GROUPS = {kind: kind for kind in KINDS} | {"rotary": "rotary_embedding"}
PLUGINS = [f"axon-{name}" for name in NAMES.values()]
SMALL = {"model.dim": 32, "model.n_layers": 2, "model.context": 32, "trainer.steps": 20, "trainer.warmup": 2}
# One process for what needs torch: the commands of which each `main` is one, and the mapping.
DRIVER = """
import json, sys
from axon_core.cli import main
for command in json.loads(sys.argv[1]):
    assert main(command) == 0, command
if len(sys.argv) > 2:
    from axon_xllama import LLAMA_ATTENTIONS_CLASSES
    print(LLAMA_ATTENTIONS_CLASSES[sys.argv[2]].__module__)
"""


def axon(lab: Lab, *commands: list[str], attention: str | None = None) -> str:
    return lab.run("python", "-c", DRIVER, json.dumps(commands), *([attention] if attention else []))


def training(kind: str, out: Path) -> list[str]:
    name = NAMES[kind]
    part = f"model.{kind}.type={name.replace('-', '_')}"
    recipe = [f"{name}-tiny"] if kind in ("model", "trainer") else ["xllama-tiny", "--set", part]
    sets = [f"--set={field}={value}" for field, value in {**SMALL, "data.held_out": 0.01}.items()]
    return ["train", *recipe, *sets, "--out", str(out / kind)]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["clone", "empty folder"])
def test_a_new_user_goes_from_idea_to_a_trained_model(place: str, tmp_path: Path) -> None:
    if place == "clone":
        folder = clone(tmp_path / "axon")
        sources, parent = sources_of(folder), "plugins/"
    else:
        folder, sources, parent = tmp_path / "empty", [], ""
        folder.mkdir()
    lab = Lab.make(folder, tmp_path / "environment", *sources)
    projects = [f"{parent}{plugin}" for plugin in PLUGINS]
    before = digest(folder)

    started = time.monotonic()
    for kind, name in NAMES.items():
        assert f"axon check axon-{name}\n" in lab.run("axon", "new", name, "--kind", kind)
    lab.run("pip", "install", "-q", "--no-deps", *(word for project in projects for word in ("-e", project)))
    report = axon(lab, *(["check", plugin] for plugin in PLUGINS), attention=NAMES["attention"])
    print(f"{place}: from five times `axon new` to as many green checks {time.monotonic() - started:.0f} s")

    assert report.count(": none failed.") == report.count("is a draft: its card still has") == len(PLUGINS)
    assert report.splitlines()[-1] == "axon_cache.attention"  # LLAMA_ATTENTIONS_CLASSES["cache"]
    listed = {(entry["group"], entry["key"]): entry for entry in json.loads(lab.run("axon", "list", "--json"))}
    for kind, name in NAMES.items():
        entry = listed[GROUPS[kind], name.replace("-", "_")]
        assert (entry["distribution"], entry["version"]) == (f"axon-{name}", "0.1.0")

    if place == "empty folder":
        report = axon(lab, *(["reproduce", name, "--out", str(tmp_path / "claims")] for name in NAMES.values()))
        assert report.count("\n1 reproduced, 3 not run\n") == 4
        assert report.count("\n1 direction holds, 3 not run\n") == 1  # the model's

    axon(lab, *(training(kind, tmp_path / "runs") for kind in KINDS))
    for kind in KINDS:
        lines = map(json.loads, (tmp_path / "runs" / kind / "metrics.jsonl").read_text().splitlines())
        losses = [line["value"] for line in lines if (line["split"], line["name"]) == ("train", "loss")]
        assert len(losses) == 20 and losses[-1] < losses[0] - 0.3, kind  # it learns: nats per character
        assert f"axon-{NAMES[kind]}" in (tmp_path / "runs" / kind / "run.json").read_text()

    assert outside(digest(folder), *projects) == before
    if place == "clone":
        the_repository_asks_for_the_front_page_alone(lab, projects, before)


def the_repository_asks_for_the_front_page_alone(lab: Lab, projects: list[str], before: dict[str, str]) -> None:
    """What the repository's tests ask of every plugin holds for one that was just made."""
    lab.run("python", "docs/generate.py", "--front")
    after = outside(digest(lab.folder), *projects)
    assert {path for path in after if after[path] != before.get(path)} == {"README.md", "docs/axon.svg"}
    words = " or ".join(PLUGINS + [plugin.replace("-", "_") for plugin in PLUGINS])
    every = "front_page or names_every or core_names or versions or every_paper or cite or every_installed_paper"
    files = [f"tests/test_{name}.py" for name in ("architecture", "docs", "docstrings", "readme")]
    tests = [*files, "-q", "-p", "no:cacheprovider", "-k", f"{words} or {every}"]
    assert " failed" not in lab.run("python", "-m", "pytest", *tests)
    lab.run("python", "-m", "ruff", "check", "--no-cache", *projects)
    lab.run("python", "-m", "ruff", "format", "--no-cache", "--check", *projects)
