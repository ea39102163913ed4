from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from sherry_gguf.llama_cpp import source
from sherry_gguf.llama_cpp.upstream import PatchSet

PRELUDE = """\
import sys
from pathlib import Path
from sherry_gguf.llama_cpp import upstream, use_pinned_gguf
upstream.PATCH_DIRS = (Path(sys.argv[1]),)
"""

Run = Callable[[str], subprocess.CompletedProcess[str]]


@pytest.fixture
def other(tiny: ModuleType, tmp_path: Path) -> Path:
    """A directory with packages of the same names."""
    return tiny.write_tree(tmp_path / "other", {"gguf/__init__.py": "", "conversion/__init__.py": ""})


@pytest.fixture
def run(fetched: PatchSet, other: Path) -> Run:
    """Run lines in a fresh process that has ``other`` on its path and takes the tiny patch set for the package's."""

    def run(text: str) -> subprocess.CompletedProcess[str]:
        package = Path(__file__).resolve().parents[2]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(other), str(package)])}
        command = [sys.executable, "-c", PRELUDE + text, str(fetched.root)]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    return run


def test_gguf_and_conversion_come_from_the_tree(run: Run, fetched: PatchSet) -> None:
    done = run(
        "use_pinned_gguf()\nuse_pinned_gguf()\nimport conversion\nfrom importlib.util import find_spec\n"
        "print(find_spec('gguf').origin, conversion.__file__, len(sys.path) == len(set(sys.path)), sep='|')\n"
    )
    tree = source(patches=fetched)
    assert done.stdout.strip().split("|") == [
        f"{tree}/gguf-py/gguf/__init__.py",
        f"{tree}/conversion/__init__.py",
        "True",
    ]


def test_the_trees_own_may_be_imported_already(run: Run) -> None:
    done = run("use_pinned_gguf()\nimport conversion\nuse_pinned_gguf()\n")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["gguf", "conversion"])
def test_another_one_already_imported_is_refused(run: Run, other: Path, name: str) -> None:
    # not by `import gguf`: the package would register its type there, and this one is empty
    done = run(
        f"from importlib.util import find_spec, module_from_spec\n"
        f"sys.modules[{name!r}] = module_from_spec(find_spec({name!r}))\nuse_pinned_gguf()\n"
    )
    assert done.returncode == 1
    assert f"SherryError: {name} is already imported from {other}/{name}/__init__.py" in done.stderr
    assert "start a fresh process, or call use_pinned_gguf() before" in done.stderr
