"""Upstream's own tests, on the patched tree."""

from __future__ import annotations

import subprocess

import pytest

from sherry_gguf import llama_cpp

pytestmark = pytest.mark.runtime


def run(runtime: llama_cpp.Build, program: str, *arguments: str) -> str:
    done = subprocess.run([str(runtime.program(program)), *arguments], capture_output=True, text=True, timeout=1200)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-4000:]
    return output


def test_quantize_fns(runtime: llama_cpp.Build) -> None:
    output = run(runtime, "test-quantize-fns", "-v")
    assert "Testing sherry" in output
    assert "Testing stq1_0" in output


def test_gguf(runtime: llama_cpp.Build) -> None:
    run(runtime, "test-gguf")


@pytest.mark.parametrize("threads", [2, 8])
def test_barrier(runtime: llama_cpp.Build, threads: int) -> None:
    """No waking is missed, also with more threads than processors, which always sleep (patch 0014)."""
    run(runtime, "test-barrier", str(threads), "5")


@pytest.mark.parametrize("kind", ["sherry", "stq1_0"])
@pytest.mark.parametrize("operator", ["MUL_MAT", "MUL_MAT_ID", "GET_ROWS", "SET_ROWS", "CPY"])
def test_backend_ops(runtime: llama_cpp.Build, operator: str, kind: str) -> None:
    """The CPU against itself: that no shape crashes. test_operators.py compares with float64."""
    output = run(runtime, "test-backend-ops", "test", "-b", "CPU", "-o", operator, "-p", kind)
    assert kind in output
