"""What llvm-mca says of the x86 kernels, and what the script says where there is none."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import mca_tables
import pytest

from sherry_gguf import llama_cpp
from sherry_gguf.errors import SherryError

LOOP = "sherry_mca:\n.L3:\n\t.p2align 4\n\tvpaddb\t%zmm0, %zmm1, %zmm1\n{}\tcmpq\t%rax, %rdx\n\tjne\t.L3\n\tret\n"


def test_the_loop_is_what_lies_between_a_label_and_the_jump_to_it() -> None:
    loop = mca_tables.longest_loop("\tret\n" + LOOP.format("") + "\t.size\tsherry_mca, 1\n\tjne\t.L3\n", "a kernel")
    assert loop.split() == ["vpaddb", "%zmm0,", "%zmm1,", "%zmm1", "cmpq", "%rax,", "%rdx", "jne", ".L3"]


@pytest.mark.parametrize("inside", ["\tcall\tf\n", "\tje\t.L4\n.L4:\n"])
def test_a_loop_that_is_no_straight_line_is_refused(inside: str) -> None:
    with pytest.raises(SherryError, match="left jumps in the loop over blocks of a kernel"):
        mca_tables.longest_loop(LOOP.format(inside), "a kernel")


def test_code_without_a_loop_is_refused() -> None:
    with pytest.raises(SherryError, match="left no loop over blocks in a kernel"):
        mca_tables.longest_loop("sherry_mca:\n\tjmp\tmul_avx512\n", "a kernel")


def test_without_llvm_mca_there_is_one_line(repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(repository / "scripts/mca_tables.py"), "--source", str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, "PATH": str(tmp_path)}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "error: there is no llvm-mca-19 and no llvm-mca (Debian: llvm-19)\n")


@pytest.mark.runtime
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the kernels are those of x86-64")
@pytest.mark.skipif(not shutil.which("llvm-mca-19"), reason="there is no llvm-mca-19 (Debian: llvm-19)")
def test_bytes_are_looked_up_faster_than_words_on_intel(runtime: llama_cpp.Build, repository: Path) -> None:
    """What docs/kernels.md says of them, with room for another compiler's taste."""
    command = [sys.executable, repository / "scripts/mca_tables.py", "--json", "--source", runtime.source]
    command += ["--cpus", "icelake-server", "sapphirerapids"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    table = json.loads(done.stdout)
    for tokens, ratio in ("1 token", 1.3), ("2 tokens", 1.4), ("4 tokens", 1.5):
        words, of_bytes = table[f"tile-avx512, {tokens}"], table[f"tile-avx512vbmi, {tokens}"]
        for cpu in words:
            assert words[cpu]["cycles"] > ratio * of_bytes[cpu]["cycles"], (cpu, tokens)
