"""The wheel and the sdist: the same bytes each time, and far from the clone all that the clone has."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile

import pytest


def build(source, folder):
    """Wheel and sdist of a tree, by the backend that pyproject.toml names."""
    command = [sys.executable, "-m", "hatchling", "build", "--directory", folder]
    subprocess.run(command, check=True, cwd=source, capture_output=True)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def built(repository, tmp_path_factory):
    return build(repository, tmp_path_factory.mktemp("dist"))


def test_the_same_bytes_from_the_clone_and_from_the_sdist(built, tmp_path):
    with tarfile.open(built[1]) as tar:
        tar.extractall(tmp_path, filter="data")
    (tree,) = tmp_path.iterdir()
    (tree / "PKG-INFO").unlink()  # of the sdist's own
    for path in [tree, *tree.rglob("*")]:  # another day, and another umask
        path.chmod(path.stat().st_mode & 0o700)
        os.utime(path, (1_000_000_000, 1_000_000_000))
    again = build(tree, tmp_path / "dist")
    assert [path.name for path in again] == [path.name for path in built]
    for first, second in zip(built, again, strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name


def test_the_wheel_carries_the_patch(repository, built):
    names = set(zipfile.ZipFile(built[0]).namelist())
    patch = repository / "ggml-patch"
    for path in patch.rglob("*"):
        if path.is_file():
            assert f"sherry_gguf/_ggml_patch/{path.relative_to(patch)}" in names
    assert not [name for name in names if name.startswith(("tests/", "ggml-patch/"))]


@pytest.mark.runtime
def test_the_main_job_in_an_empty_environment(repository, built, runtime, tiny_checkpoint, heldout_text, tmp_path):
    """pip installs the wheel and what it asks for; then all that README does with a checkpoint."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(*command):
        done = subprocess.run([str(part) for part in command], cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=900)  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    run(sys.executable, "-m", "venv", "venv")
    quiet = ["--quiet", "--disable-pip-version-check", "--constraint", repository / "scripts/constraints.txt"]
    run("venv/bin/pip", "install", *quiet, built[0])

    command, file = "venv/bin/sherry-gguf", tmp_path / "model.gguf"
    version = run(command, "--version").split()[1].rstrip(",")
    assert built[0].name.startswith(f"sherry_gguf-{version}-")
    # the same patch, so the same build, which is there
    assert str(runtime.bin_dir) in run(command, "build")
    run(command, "convert", tiny_checkpoint, "--outfile", file)
    cli = run(command, "which", "llama-cli").strip()
    assert "[ Prompt:" in run(cli, "-m", file, "-p", "My fellow citizens,", "-n", 16, "--single-turn")
    run(command, "parity", tiny_checkpoint, file, "--text", heldout_text, "--chunks", 1)
