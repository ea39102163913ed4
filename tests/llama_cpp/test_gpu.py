"""The GPU backends of a build: what is missing is named before anything is compiled."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sherry_gguf.cli import main
from sherry_gguf.errors import SherryError
from sherry_gguf.llama_cpp.config import Config
from sherry_gguf.llama_cpp.gpu import GPUS, gpu_defines


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH of one folder, and a compiler without headers."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDACXX", raising=False)
    monkeypatch.setenv("CXX", str(tmp_path / "c++"))
    return tmp_path


def program(path: Path, line: str = "true") -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


def test_all_that_is_missing_is_named(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "--gpu", "vulkan"]) == 1
    said = capsys.readouterr().err
    assert re.search(
        r"vulkan backend cannot be compiled without glslc, Vulkan's headers, SPIR-V's headers: .*`apt install glslc",
        said,
    )
    program(bare / "glslc")
    with pytest.raises(SherryError, match=r"without Vulkan's headers, SPIR-V's headers: "):
        gpu_defines("vulkan")
    with pytest.raises(SherryError, match=r"cuda backend cannot be compiled without nvcc: .*CUDACXX"):
        gpu_defines("cuda")


def test_what_is_there_turns_the_backend_on(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(bare / "glslc")
    program(bare / "c++")
    assert gpu_defines("vulkan") == ("GGML_VULKAN=ON",)
    program(bare / "my-nvcc")
    monkeypatch.setenv("CUDACXX", str(bare / "my-nvcc"))
    assert gpu_defines("cuda") == ("GGML_CUDA=ON",)


def test_each_backend_is_another_build() -> None:
    identities = {Config.of(None, (gpu.define,)).identity() for gpu in GPUS.values()} | {Config.of(None, ()).identity()}
    assert len(identities) == 1 + len(GPUS)
