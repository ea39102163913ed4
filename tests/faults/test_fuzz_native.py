"""Files that are changed at random are refused by ggml, or read as the Python reader reads them, under sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
from fuzz_native import SANITIZERS, TYPES, Told, against_python, compiled, fuzz, outcomes
from mutants import whole_gguf

pytestmark = pytest.mark.runtime

SEED, MUTANTS = 20261127, 2000


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As fuzz_native.py compiles it, where the compiler has the sanitizers."""
    compiler = os.environ.get("CXX", "c++").split()
    folder = tmp_path_factory.mktemp("sanitized")
    (folder / "empty.cpp").write_text("int main() { return 0; }\n", encoding="ascii")
    link = [*compiler, SANITIZERS, str(folder / "empty.cpp"), "-o", str(folder / "empty")]
    found = shutil.which(compiler[0]) and subprocess.run(link, capture_output=True).returncode == 0
    if not found or subprocess.run([folder / "empty"]).returncode:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{compiler[0]} has no sanitizers here")
    return compiled(folder)


@pytest.mark.usefixtures("pinned_gguf")
def test_mutants(program, tmp_path):
    counts: Counter[str] = Counter()
    assert list(fuzz(program, SEED, iter(range(MUTANTS)), tmp_path, counts)) == []
    assert counts["mutants"] == MUTANTS
    # enough of each for the draw to mean something
    for tensor_type in TYPES:
        assert counts[f"tensors that both read, {tensor_type.name.lower()}"] >= 100
    assert counts["tensors that both refuse"] >= 30
    assert counts["files that both refuse"] >= 500


@pytest.mark.usefixtures("pinned_gguf")
def test_other_weights_would_be_seen(program, tmp_path):
    file = b"".join(content for _, content in whole_gguf(Random(1), TYPES, [33]))
    (told,) = outcomes(program, [file], tmp_path)
    path = tmp_path / "whole.gguf"
    path.write_bytes(file)
    assert told.read
    assert against_python(path, told, Counter()) is None
    assert {name for name, _, _ in told.tensors} > {"f32"}
    for number, (type_name, valid, values) in enumerate(told.tensors):
        others = list(told.tensors)
        others[number] = (type_name, valid, values + np.float32(0.5))
        assert f"{type_name}: other weights" in str(against_python(path, Told(True, others), Counter()))
