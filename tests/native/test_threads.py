"""Matrix products of all types under ThreadSanitizer: no thread reads what another one may not have written yet."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from sherry_gguf import llama_cpp

pytestmark = pytest.mark.runtime

PROGRAM = Path(__file__).with_name("threads.c")
AMX = f"-DSHERRY_AMX_EMULATED -I{Path(__file__).with_name('amx')}"  # where tiles are those that it multiplies

# Threads of ggml's own: of OpenMP's, the sanitizer does not see what they wait for.
DEFINES = [
    "GGML_OPENMP=OFF",
    "GGML_SANITIZE_THREAD=ON",
    f"CMAKE_C_FLAGS_RELEASE=-O1 -g {AMX}",
    f"CMAKE_CXX_FLAGS_RELEASE=-O1 -g {AMX}",
]
SANITIZE = ["-g", "-O1", "-fsanitize=thread"]


@dataclass(frozen=True)
class Tools:
    compiler: list[str]
    start: list[str]  # what comes before the name of a program


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Tools:
    """A C compiler that can link the sanitizer, and how to run what it made; in CI on Linux the test needs them."""
    give_up = pytest.fail if os.environ.get("CI") and platform.system() == "Linux" else pytest.skip
    compiler = os.environ.get("CC", "cc").split()
    if shutil.which(compiler[0]) is None:
        give_up(f"no C compiler {compiler[0]}")
    folder = tmp_path_factory.mktemp("empty")
    (folder / "empty.c").write_text("int main(void) { return 0; }\n", encoding="ascii")
    link = [*compiler, *SANITIZE, str(folder / "empty.c"), "-o", str(folder / "empty")]
    done = subprocess.run(link, capture_output=True, text=True)
    if done.returncode:
        give_up(f"{compiler[0]} cannot link the thread sanitizer: {done.stderr}")
    # Some kernels place now and then a program where the sanitizer cannot have it, unless told to place all alike;
    # some containers forbid telling them.
    for start in (["setarch", "-R"], []):
        if start and shutil.which(start[0]) is None:
            continue
        done = subprocess.run([*start, str(folder / "empty")], capture_output=True, text=True)
        if done.returncode == 0:
            return Tools(compiler, start)
    give_up(f"an empty program does not run with the thread sanitizer: {done.stderr}")
    raise AssertionError  # not reached


def test_no_thread_outruns_another(tools: Tools, tmp_path: Path) -> None:
    build = llama_cpp.build(["ggml-cpu"], defines=DEFINES)
    includes = [f"-I{build.source / 'ggml' / folder}" for folder in ("include", "src")]
    libraries = [f"-L{build.bin_dir}", f"-Wl,-rpath,{build.bin_dir}", "-lggml-cpu", "-lggml-base"]
    command = [*tools.compiler, *SANITIZE, *includes, PROGRAM, *libraries, "-o", tmp_path / "check"]
    subprocess.run([str(part) for part in command], check=True)
    options = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1 exitcode=66"}
    program = [*tools.start, str(tmp_path / "check")]
    sums = set()
    for name in ("", "amx"):  # the fastest, and where there is none of that name the fastest again
        environment = {**options, "SHERRY_KERNEL": name}
        done = subprocess.run(program, capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stderr
        sums.add(done.stdout)
    assert len(sums) == 1
