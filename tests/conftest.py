"""Fixtures that several test files share: data, plugins installed for one test, and a registry for them."""

from __future__ import annotations

import importlib
import os
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from forked_python import ForkedPython, forked_python

from axon_core.registry.registry import Registry, refresh, registry_of

# Looked through for doctests, they would be imported a second time under another name.
collect_ignore = [
    "caught.py",
    "forked_python.py",
    "fuzz",
    "healthy_parts.py",
    "kill_server.py",
    "kill_subjects.py",
    "new_user.py",
    "rank_server.py",
    "toy_trainer.py",
]


@pytest.fixture(scope="session")
def short_text(tmp_path_factory) -> Path:
    """A file with a little English text, so that a training is over in a moment."""
    from pydoc_data.topics import topics

    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(topics[name] for name in sorted(topics))[:20_000], encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data; tests that need it are skipped where it is not named."""
    if not (folder := os.environ.get("AXON_DATA_DIR")):
        pytest.skip("needs real data: set AXON_DATA_DIR to its folder")
    return Path(folder)


@pytest.fixture(scope="session")
def forked() -> Iterator[ForkedPython]:
    """A process in which torch is imported, to run code in."""
    with forked_python() as running:
        yield running


class Site:
    """A folder on `sys.path` into which a test installs distributions, laid out as pip does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(
        self,
        name: str,
        entry_points: Mapping[str, Mapping[str, str]] | str | bytes = "",
        files: Mapping[str, str] | None = None,
        *,
        version: str = "1.0",
        metadata: bool = True,
        extra: str = "",
    ) -> Path:
        """Install distribution `name`: its entry points, by group or as raw text, its files by path, and an extra."""
        info = self.folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        if isinstance(entry_points, Mapping):
            entry_points = "\n".join(
                f"[{group}]\n" + "".join(f"{key} = {target}\n" for key, target in entries.items())
                for group, entries in entry_points.items()
            )
        content = {
            "INSTALLER": "pip\n",
            "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "RECORD": "".join(f"{path},,\n" for path in files or {}),
        }
        if metadata:
            extras = f"Provides-Extra: {extra}\n" if extra else ""
            content["METADATA"] = f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n{extras}\nA description.\n"
        for file, text in content.items():
            (info / file).write_text(text, "utf-8")
        raw = entry_points if isinstance(entry_points, bytes) else entry_points.encode()
        (info / "entry_points.txt").write_bytes(raw)
        for path, text in (files or {}).items():
            file = self.folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(textwrap.dedent(text).lstrip(), "utf-8")
        refresh()
        return info


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Yield a site that is gone after the test, with all modules imported from it."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delenv("AXON_PLUGINS", raising=False)
    monkeypatch.delenv("AXON_DISABLE_PLUGINS", raising=False)
    environment = os.environ.copy()  # discovery changes it where a distribution is damaged
    yield Site(folder)
    os.environ.clear()
    os.environ.update(environment)
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]
    monkeypatch.undo()
    importlib.invalidate_caches()
    refresh()


TOYS = '''
    """A plugin with a registry of its own."""
    from abc import ABC, abstractmethod
    from axon_core import config
    from axon_core.registry import Registry

    class Toy(ABC):
        """The interface."""
        class Config(config.Config):
            dim: int
            """Size."""
        def __init__(self, config, part=None):
            self.config, self.part = config, part
        @abstractmethod
        def play(self): ...

    class Ball(Toy):
        """A ball bounces."""
        class Config(Toy.Config):
            bounces: int = 3
            """How often it bounces."""
        def play(self):
            return self.config.dim * self.config.bounces

    TOYS = Registry("toy", Toy)
'''


@pytest.fixture
def toys(site: Site) -> Registry:
    """Return a registry of toys, defined by the installed plugin `axon-toys`, which brings the toy `ball`."""
    groups = {"axon.v1.registry": {"toy": "axon_toys:TOYS"}, "axon.v1.toy": {"ball": "axon_toys:Ball"}}
    site.install("axon-toys", groups, {"axon_toys.py": TOYS})
    return registry_of("toy")
