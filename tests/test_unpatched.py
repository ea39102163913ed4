"""What a llama.cpp without the patch makes of our files: it says no, in words, and lives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cmake
import ninja
import pytest

from sherry_gguf.llama_cpp import cache, fetch
from sherry_gguf.llama_cpp.upstream import PatchSet

# gguf_init_params is {bool no_alloc; ggml_context ** ctx}, passed by value
READ = """
import ctypes, sys

class Params(ctypes.Structure):
    _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p)]

library = ctypes.CDLL(sys.argv[1])
library.gguf_init_from_file.restype = ctypes.c_void_p
library.gguf_init_from_file.argtypes = [ctypes.c_char_p, Params]
print("refused" if library.gguf_init_from_file(sys.argv[2].encode(), Params(True, None)) is None else "accepted")
"""


@pytest.fixture(scope="module")
def unpatched(tmp_path_factory) -> Path:
    """libggml-base of the pristine pin, which has llama.cpp's reader of GGUF files."""
    folder = tmp_path_factory.mktemp("unpatched")
    pin = PatchSet.load().pin
    with cache.locked() as home:
        archive = fetch.fetch(home, pin)
    (folder / "tree").mkdir()
    fetch.unpack(archive, pin.subdir, folder / "tree")
    configure = [Path(cmake.CMAKE_BIN_DIR) / "cmake", "-S", "tree", "-B", "build", "-G", "Ninja"]
    without = [f"-DLLAMA_BUILD_{part}=OFF" for part in ("COMMON", "TESTS", "TOOLS", "EXAMPLES", "SERVER", "APP")]
    settings = ["-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON", "-DGGML_METAL=OFF", *without]
    make = Path(ninja.BIN_DIR) / "ninja"
    subprocess.run([*configure, *settings, f"-DCMAKE_MAKE_PROGRAM={make}"], cwd=folder, check=True, capture_output=True)
    subprocess.run([make, "-C", "build", "ggml-base"], cwd=folder, check=True, capture_output=True)
    return next(path for path in (folder / "build").rglob("libggml-base.*") if path.suffix in (".so", ".dylib"))


@pytest.mark.runtime
def test_refuses_with_words(unpatched, sherry_gguf_file):
    done = subprocess.run(
        [sys.executable, "-c", READ, unpatched, sherry_gguf_file], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert done.stdout == "refused\n"
    assert "invalid ggml type 512" in done.stderr


@pytest.mark.runtime
@pytest.mark.parametrize("types", [{"overrides": [(".*", "f32")]}, {"outtype": "q2_0"}, {"outtype": "q4_0"}])
def test_reads_a_file_without_our_type(unpatched, tiny_checkpoint, tmp_path, pinned_gguf, types):
    from sherry_gguf.convert import TypeChoice, convert

    plain = convert(tiny_checkpoint, tmp_path / "x.gguf", types=TypeChoice(**types)).outfile
    done = subprocess.run([sys.executable, "-c", READ, unpatched, plain], capture_output=True, text=True, timeout=60)
    assert done.stdout == "accepted\n", done.stderr
