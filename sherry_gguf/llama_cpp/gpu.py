"""GPU backends of a build: what turns one on, what it needs of the machine, and which of its shaders get compiled."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sherry_gguf.errors import SherryError

FEATURE_TESTS = "ggml/src/ggml-vulkan/vulkan-shaders/feature-tests"  # in llama.cpp's tree


@dataclass(frozen=True)
class Gpu:
    """A backend of llama.cpp."""

    define: str  # NAME=VALUE for cmake
    needs: dict[str, Callable[[], bool]]  # by the name that a user knows it by: whether it is there
    packages: str  # where to get all of it


def gpu_defines(name: str) -> tuple[str, ...]:
    """The settings for cmake of a backend of GPUS. Raises SherryError, with what to install, where something lacks."""
    gpu = GPUS[name]
    missing = [need for need, is_there in gpu.needs.items() if not is_there()]
    if missing:
        raise SherryError(f"the {name} backend cannot be compiled without {', '.join(missing)}: {gpu.packages}")
    return (gpu.define,)


def vulkan_paths(source: Path) -> dict[str, bool]:
    """Names of the optional shaders in a tree of llama.cpp, and whether this machine's glslc can compile them.

    cmake leaves out what it cannot compile without a word, and llama.cpp then uses its general shaders.
    """
    command = ["glslc", "-o", "-", "-fshader-stage=compute", "--target-env=vulkan1.3"]
    return {
        test.stem: subprocess.run([*command, str(test)], capture_output=True).returncode == 0
        for test in sorted((source / FEATURE_TESTS).glob("*.comp"))
    }


def _has_program(name: str) -> bool:
    return shutil.which(name) is not None


def _has_header(name: str) -> bool:
    """Whether the C++ compiler finds it."""
    compiler = [*shlex.split(os.environ.get("CXX") or "c++"), *shlex.split(os.environ.get("CXXFLAGS", ""))]
    source = f"#include <{name}>\n"
    try:
        done = subprocess.run([*compiler, "-E", "-x", "c++", "-"], input=source, capture_output=True, text=True)
    except OSError:
        return False
    return done.returncode == 0


GPUS = {
    "cuda": Gpu(
        define="GGML_CUDA=ON",
        needs={"nvcc": lambda: _has_program(os.environ.get("CUDACXX") or "nvcc")},
        packages="install the CUDA toolkit, and have nvcc in PATH or name it in CUDACXX",
    ),
    "vulkan": Gpu(
        define="GGML_VULKAN=ON",
        needs={
            "glslc": lambda: _has_program("glslc"),
            "Vulkan's headers": lambda: _has_header("vulkan/vulkan_core.h"),
            "SPIR-V's headers": lambda: _has_header("spirv/unified1/spirv.h"),
        },
        packages="install them (Debian, Ubuntu: `apt install glslc libvulkan-dev spirv-headers`) or the Vulkan SDK",
    ),
}
