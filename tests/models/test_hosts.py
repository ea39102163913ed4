"""llama-cpp-python, a program of other people's, runs SHERRY with the built library as docs/hosts.md says."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from asking import PROMPT, TOKENS, ask

from sherry_gguf import llama_cpp
from sherry_gguf.llama_cpp.upstream import PatchSet

pytestmark = pytest.mark.runtime


def test_the_page_names_the_release_of_the_pin(repository: Path) -> None:
    page = (repository / "docs/hosts.md").read_text(encoding="utf-8")
    assert f"pip install llama-cpp-python=={PatchSet.load().pin.version}\n" in page


def test_the_example_answers(
    llama_cpp_python: Path, runtime: llama_cpp.Build, sherry_gguf_file: Path, tmp_path: Path
) -> None:
    answer = ask(llama_cpp_python, runtime.bin_dir, sherry_gguf_file, tmp_path)
    # flash attention adds up in another order, and llama-cpp-python has it off unless it is asked for
    flags = ["-p", PROMPT, "-n", str(TOKENS), "--temp", "0", "-t", "2", "-fa", "off", "-no-cnv"]
    command = [runtime.program("llama-completion"), "-m", sherry_gguf_file, *flags]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert len(answer.split()) > 4
    assert answer in done.stdout


def test_the_readmes_example_answers(
    llama_cpp_python: Path, runtime: llama_cpp.Build, sherry_gguf_file: Path, tmp_path: Path
) -> None:
    assert len(ask(llama_cpp_python, runtime.bin_dir, sherry_gguf_file, tmp_path, "README.md").split()) > 4
