"""A llama.cpp of a few lines, an sdist that carries it, and a patch set for it: all small, all real."""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from sherry_gguf.llama_cpp import fetch
from sherry_gguf.llama_cpp.upstream import PatchSet

CMAKE = """\
cmake_minimum_required(VERSION 3.14)
project(tiny C CXX)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
add_library(tiny src/tiny.c src/other.c)
set_target_properties(tiny PROPERTIES VERSION 0.1 SOVERSION 0)
set(EXTRA 0 CACHE STRING "what other() returns")
target_compile_definitions(tiny PRIVATE EXTRA=${EXTRA})
add_executable(hello src/hello.c)
target_link_libraries(hello PRIVATE tiny)
add_executable(second src/hello.c)
target_link_libraries(second PRIVATE tiny)
"""

TREE = {
    "CMakeLists.txt": CMAKE,
    "ggml/include/ggml.h": "int tiny(void);\nint other(void);\n",
    "src/tiny.c": "/* tiny */\nint other(void);\n\nint tiny(void) {\n    return 1 + other();\n}\n\nint last;\n\n\n",
    "src/other.c": "int other(void) {\n    return EXTRA;\n}\n",
    "src/hello.c": '#include <stdio.h>\n#include "../ggml/include/ggml.h"\n\n'
    'int main(void) {\n    printf("%d\\n", tiny());\n}\n',
    "scripts/run.sh": "#!/bin/sh\n",
    "gguf-py/gguf/__init__.py": "HERE = 'the tree'\n",
    "conversion/__init__.py": "",
}

PATCH = """\
Description: count from forty
 Two lines of it.
Author: the tests
Forwarded: no
diff --git a/src/tiny.c b/src/tiny.c
--- a/src/tiny.c
+++ b/src/tiny.c
@@ -2,7 +2,7 @@
 int other(void);
{blank}
 int tiny(void) {
-    return 1 + other();
+    return 40 + other();
 }
{blank}
 int last;
""".replace("{blank}", " ")


def write_tree(root: Path, tree: dict[str, str] = TREE) -> Path:
    for name, text in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755 if name.endswith(".sh") else 0o644)
    return root


def write_sdist(path: Path, members: dict[str, str | tarfile.TarInfo]) -> Path:
    """A tar.gz of text members; a TarInfo is written as it is."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content.encode()), 0o755 if name.endswith(".sh") else 0o644
            tar.addfile(info, io.BytesIO(content.encode()))
    return path


def write_patches(root: Path, sdist: Path, patches: dict[str, str], files: dict[str, str]) -> PatchSet:
    sha256 = hashlib.sha256(sdist.read_bytes()).hexdigest()
    write_tree(root, {f"files/{name}": text for name, text in files.items()})
    write_tree(root, {f"patches/{name}": text for name, text in patches.items()})
    root.mkdir(exist_ok=True)
    (root / "series").write_text("# in order\n" + "".join(f"{name}\n" for name in patches))
    (root / "UPSTREAM").write_text(f"sdist: tiny-cpp\nversion: 1.0\nsha256: {sha256}\nsubdir: vendor/llama.cpp\n")
    return PatchSet.load(root)


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """This module: tests cannot import it."""
    return sys.modules[__name__]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory of the test's own."""
    path = tmp_path / "the cache"  # a path may have a space
    monkeypatch.setenv("SHERRY_GGUF_CACHE", str(path))
    for name in ("CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS"):
        monkeypatch.delenv(name, raising=False)
    return path


@pytest.fixture
def sdist(tmp_path: Path) -> Path:
    members = {f"tiny-1.0/vendor/llama.cpp/{name}": text for name, text in TREE.items()}
    members |= {
        "tiny-1.0/README": "not in the tree\n",
        "tiny-1.0/vendor/llama.cpp/.git": "gitdir: ../../.git/modules/x\n",
    }
    return write_sdist(tmp_path / "tiny_cpp-1.0.tar.gz", members)


@pytest.fixture
def patches(tmp_path: Path, sdist: Path) -> PatchSet:
    """PATCH and a new file, for the tree of ``sdist``."""
    return write_patches(tmp_path / "patch", sdist, {"0001-forty.patch": PATCH}, {"src/new.c": "int new_one;\n"})


@pytest.fixture
def fetched(cache: Path, sdist: Path, patches: PatchSet) -> PatchSet:
    """``patches``, with its sdist in the cache."""
    fetch.add(cache, patches.pin, sdist)
    return patches


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of a user's own, without git."""
    return write_tree(tmp_path / "mine")


@pytest.fixture
def rewrite() -> Callable[[Path, str, str], None]:
    """Replace a text that must be there in a file."""

    def replace(path: Path, old: str, new: str) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return replace
