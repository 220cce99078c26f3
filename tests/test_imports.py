"""Each module of each plugin can be imported first: no import depends on another that came before it."""

from pathlib import Path

import pytest
from forked_python import ForkedPython

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(ROOT.glob("plugins/*/axon_*"))
CODE = """
import os, sys
from importlib import import_module

package, names = {package!r}, {names!r}
for name in names:  # what the package itself imports, so that each process below imports the package alone
    import_module(name)
for name in [name for name in sys.modules if name.partition(".")[0] == package]:
    del sys.modules[name]
for name in names:
    if (pid := os.fork()) == 0:
        import_module(name)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0, f"`import {{name}}` fails if it comes first"
"""


def modules(package: Path) -> list[str]:
    """The modules of a package, by their full names."""
    files = (file.relative_to(package.parent).with_suffix("") for file in sorted(package.rglob("*.py")))
    return [".".join(file.parts).removesuffix(".__init__") for file in files if file.name != "__main__"]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_each_module_can_be_the_first(package: Path, forked: ForkedPython, tmp_path: Path) -> None:
    forked.run(CODE.format(package=package.name, names=modules(package)), tmp_path)
