"""Which kernel tiles in memory are for: the fastest one, or the one that is asked for. No result depends on it."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from kernel_tables import tile_kernels

from sherry_gguf import llama_cpp

pytestmark = pytest.mark.runtime


def which(kernel: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "SHERRY_KERNEL"}
    if kernel is not None:
        environment["SHERRY_KERNEL"] = kernel
    command = [sys.executable, "-m", "sherry_gguf", "which", "--kernel"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)


def test_the_choice_is_said(runtime: llama_cpp.Build) -> None:
    done = which()
    names = tile_kernels(runtime.lib("ggml-cpu"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in names
    assert done.stderr.startswith(f"sherry: tiles for the kernel {done.stdout.strip()}")
    assert done.stderr.count("\n") == 1
    # of two kernels with the same tiles one is timed
    other = "avx512vbmi" if done.stdout.strip() == "amx" else "amx"
    candidates = [name for name in names if name not in ("generic", other)]
    if len(candidates) > 1:  # each with its two rates, the chosen one first
        rates = re.findall(r"(\S+) \((\d+) and (\d+) Gweights/s", done.stderr)
        assert {name for name, *_ in rates} == set(candidates)
        # the largest product of both rates, which are rounded to whole numbers in the log
        largest = (int(rates[0][1]) + 0.5) * (int(rates[0][2]) + 0.5)
        assert largest >= max((int(one) - 0.5) * (int(four) - 0.5) for _, one, four in rates)


def test_each_kernel_can_be_asked_for(runtime: llama_cpp.Build) -> None:
    for name, kernel in tile_kernels(runtime.lib("ggml-cpu")).items():
        if kernel.many and not kernel.many.contents.allowed():
            continue
        done = which(name)
        assert (done.returncode, done.stdout) == (0, f"{name}\n"), done.stderr
        assert done.stderr == f"sherry: tiles for the kernel {name}, as SHERRY_KERNEL says\n"


def test_another_name_is_said_to_be_none(runtime: llama_cpp.Build) -> None:
    done = which("fastest")
    assert done.stderr.startswith("sherry: SHERRY_KERNEL=fastest is none of ")
    assert (done.returncode, done.stdout) == (0, which().stdout)


def test_a_program_gives_the_same_with_each(
    runtime: llama_cpp.Build, sherry_gguf_file: object, heldout_text: object
) -> None:
    """The whole way from tiles to a perplexity, with 13 tokens at once and with the last few of a chunk."""
    command = [runtime.program("llama-perplexity"), "-m", sherry_gguf_file, "-f", heldout_text, "--chunks", 2]
    options = ["-c", 128, "-b", 128, "-ub", 13]
    said = set()
    for name in tile_kernels(runtime.lib("ggml-cpu")):
        done = subprocess.run(
            [str(part) for part in (*command, *options)],
            capture_output=True,
            text=True,
            env={**os.environ, "SHERRY_KERNEL": name},
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        said.add(re.search(r"Final estimate: .*", done.stdout + done.stderr)[0])  # type: ignore[index]
    assert len(said) == 1
