"""The NEON kernels, compiled for three sets of ARM instructions: equal to the generic ones, and as short as documented.

They run in qemu-aarch64 where the machine is another one. The program is kernels.c.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sherry_gguf import llama_cpp

pytestmark = pytest.mark.runtime

NATIVE = platform.machine() in ("aarch64", "arm64")
CROSS = {"neon": "-march=armv8-a", "dotprod": "-march=armv8.2-a+dotprod", "i8mm": "-march=armv8.6-a+i8mm"}
FLAGS = {"neon": "-march=armv8-a", "native": "-mcpu=native"} if NATIVE else CROSS

COMPILER = "aarch64-linux-gnu-gcc"
EMULATOR = "qemu-aarch64"


def need(*programs: str, on_every_machine: bool = True) -> None:
    """Without them the test is skipped; in CI it fails, unless it is one that not every machine of CI can run."""
    missing = [program for program in programs if shutil.which(program) is None]
    if not missing:
        return
    message = f"there is no {' and no '.join(missing)} (Debian: gcc-aarch64-linux-gnu, qemu-user)"
    if os.environ.get("CI") and on_every_machine:
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="module")
def compiler() -> list[str]:
    if NATIVE:
        return os.environ.get("CC", "cc").split()
    need(COMPILER, EMULATOR)
    return [COMPILER, "-static"]


@pytest.fixture(scope="module")
def emulator() -> list[str]:
    return [] if NATIVE else [EMULATOR, "-cpu", "max"]


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS.keys())
def test_kernels_equal_the_generic_ones(
    kernels_program: list[str], compiler: list[str], emulator: list[str], tmp_path: Path, flags: str
) -> None:
    options = ["-std=c11", "-D_GNU_SOURCE", "-O2", flags]
    subprocess.run([*compiler, *options, *kernels_program, "-o", str(tmp_path / "arm")], check=True)
    command = [*emulator, str(tmp_path / "arm"), "neon", "neon"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


def test_instruction_counts(runtime: llama_cpp.Build, repository: Path) -> None:
    """What docs/kernels.md says of them, with room for another compiler's taste."""
    need(COMPILER, EMULATOR, on_every_machine=not NATIVE)
    command = [sys.executable, repository / "scripts/count_arm.py", "--json", "--source", runtime.source]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    for name in CROSS:
        upstream = counts["tq2_0"][name]
        assert counts["row"][name] < 1.4 * upstream
        assert counts["stq1_0"][name] < 1.4 * upstream
        assert counts["tile1"][name] < 0.5 * upstream
        assert counts["tile4"][name] < 0.42 * upstream
