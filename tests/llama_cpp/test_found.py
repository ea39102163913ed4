"""What a build uses of the machine: asked of the compiler and of Node.js, a part of the build's identity, and told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sherry_gguf.llama_cpp import build, builds, find_build, found
from sherry_gguf.llama_cpp.config import Config
from sherry_gguf.llama_cpp.upstream import PatchSet

Program = Callable[[str, str], None]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Programs of a line, in a folder that is all of PATH but the shell's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def write(name: str, line: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)

    return write


@pytest.mark.parametrize(
    ("version", "is_enough"),
    [("v20.19.0", True), ("v22.1.0", True), ("v20.18.3", False), ("v18.20.4", False), ("x", False)],
)
def test_node_has_to_be_new_enough(program: Program, version: str, is_enough: bool) -> None:
    assert not found._has_node()
    program("node", f"echo {version}")
    assert not found._has_node(), "without npm"
    program("npm", "true")
    assert found._has_node() == is_enough


def test_the_compiler_is_asked_for_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = tmp_path / "include/openssl/ssl.h"
    header.parent.mkdir(parents=True)
    header.touch()
    monkeypatch.setenv("CFLAGS", "-nostdinc")
    assert not found._has_openssl()
    monkeypatch.setenv("CFLAGS", f"-nostdinc -I'{header.parent.parent}'")
    assert found._has_openssl()
    monkeypatch.setenv("CC", str(tmp_path / "no compiler"))
    assert not found._has_openssl()


def test_what_is_lacking_is_said_unless_it_was_decided() -> None:
    assert found.lacks(("LLAMA_OPENSSL=ON", "LLAMA_BUILD_UI=ON")) == []
    assert len(found.lacks(("LLAMA_OPENSSL=OFF", "LLAMA_BUILD_UI=OFF"))) == 2
    (line,) = found.lacks(("LLAMA_OPENSSL=OFF", "LLAMA_BUILD_UI=OFF", "LLAMA_BUILD_UI:BOOL=NO"))
    assert "OpenSSL" in line


def test_it_counts_and_is_remembered(cache: Path, fetched: PatchSet, monkeypatch: pytest.MonkeyPatch) -> None:
    found.found_defines()  # a process asks once
    now = Config.of(None, ())
    other = replace(now, found=("LLAMA_OPENSSL=OFF", "LLAMA_BUILD_UI=OFF", "X=1"))
    assert now.identity() != other.identity()
    assert set(now.found) <= {argument.removeprefix("-D") for argument in now.cmake_arguments()}
    made = build(["hello"], patches=fetched)
    builds.remember(None, ())
    assert json.loads((cache / builds.LAST).read_text())["found"] == list(now.found)
    monkeypatch.setattr("sherry_gguf.llama_cpp.config.found_defines", lambda: other.found)
    assert find_build(patches=fetched) == made, "a shell without Node.js finds the build that was made with it"
