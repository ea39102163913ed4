"""The wheel: far from the clone it has all that the clone has."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile

import pytest


@pytest.fixture(scope="module")
def wheel(repository, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", folder, repository]
    subprocess.run(command, check=True, cwd=folder)
    (path,) = folder.glob("sherry_gguf-*.whl")
    return path


def test_the_wheel_carries_the_patch(repository, wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    patch = repository / "ggml-patch"
    for path in patch.rglob("*"):
        if path.is_file():
            assert f"sherry_gguf/_ggml_patch/{path.relative_to(patch)}" in names
    assert not [name for name in names if name.startswith(("tests/", "ggml-patch/"))]


def test_the_installed_wheel_finds_the_same_source(wheel, tmp_path, pinned_gguf):
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path / "site", wheel],
        check=True,
    )
    done = subprocess.run(
        [sys.executable, "-c", "import sherry_gguf, runpy; print(sherry_gguf.__file__); "
         "import sys; sys.argv = ['sherry-gguf', 'which', '--source']; runpy.run_module('sherry_gguf')"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )  # fmt: skip
    package, source = done.stdout.split()
    assert package.startswith(str(tmp_path / "site"))
    assert f"{source}/gguf-py/gguf/__init__.py" == pinned_gguf.__file__
