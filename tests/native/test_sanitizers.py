"""The quantizer and the kernels under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.runtime

SANITIZE = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
X86 = platform.machine() in ("x86_64", "AMD64")
NATIVE = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A C compiler that can link the sanitizers and run what it made."""
    command = os.environ.get("CC", "cc").split()
    if shutil.which(command[0]) is None:
        pytest.skip(f"no C compiler {command[0]}")
    folder = tmp_path_factory.mktemp("empty")
    (folder / "empty.c").write_text("int main(void) { return 0; }\n", encoding="ascii")
    link = [*command, *SANITIZE, str(folder / "empty.c"), "-o", str(folder / "empty")]
    if subprocess.run(link, capture_output=True).returncode or subprocess.run([str(folder / "empty")]).returncode:
        pytest.skip(f"{command[0]} has no sanitizers here")
    return command


# instruction sets that a native build of most machines has more than, what /proc/cpuinfo calls them, and the kernels of
# tiles and of rows that should be the best, and others of tiles that should be there
FLAGS = {"baseline": [], "native": [NATIVE]}
NEEDS = {"avx2": "avx2", "avx512": "avx512bw", "avx512vbmi": "avx512vbmi", "amx": "avx512vbmi"}
BEST = {}
if X86:
    FLAGS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    FLAGS["avx512"] = [*FLAGS["avx2"], "-mavx512f", "-mavx512bw", "-mavx512vl"]
    FLAGS["avx512vbmi"] = [*FLAGS["avx512"], "-mavx512vbmi", "-mavx512vnni"]
    FLAGS["amx"] = [*FLAGS["avx512vbmi"], "-DSHERRY_AMX_EMULATED", f"-I{Path(__file__).with_name('amx')}"]
    BEST = {
        "avx2": ["avx2", "avx2"],
        "avx512": ["avx512", "avx2"],
        "avx512vbmi": ["avx512", "avx2", "avx512vbmi"],
        "amx": ["avx512", "avx2", "avx512vbmi", "amx"],
    }


def runs_here(name: str) -> bool:
    info = Path("/proc/cpuinfo")
    return name not in NEEDS or not info.exists() or NEEDS[name] in info.read_text(encoding="ascii").split()


def run(program: list[str], compiler: list[str], folder: Path, flags: list[str], best: list[str]) -> None:
    subprocess.run([*compiler, *SANITIZE, *flags, *program, "-o", str(folder / "check")], check=True)
    done = subprocess.run([str(folder / "check"), *best], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


@pytest.mark.parametrize("name", FLAGS)
def test_no_access_out_of_bounds_and_nothing_undefined(
    kernels_program: list[str], compiler: list[str], tmp_path: Path, name: str
) -> None:
    if not runs_here(name):
        pytest.skip(f"this machine has no {name}")
    run(kernels_program, compiler, tmp_path, FLAGS[name], BEST.get(name, []))


@pytest.mark.skipif(not X86, reason="the kernels are those of x86-64")
def test_avx512_in_c(kernels_program: list[str], compiler: list[str], tmp_path: Path) -> None:
    simde = Path(__file__).with_name("simde")
    if subprocess.run([*compiler, "-E", str(simde / "immintrin.h")], capture_output=True).returncode:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("there is no SIMDe (Debian: libsimde-dev)")
    # without FMA the kernels for AVX2 are left out: they would take long to compile
    claimed = [f"-D__{name}__" for name in ("AVX", "AVX2", "AVX512F", "AVX512BW", "AVX512VBMI")]
    # SIMDe adds signed bytes where the instruction wraps
    flags = [
        *claimed,
        f"-I{simde}",
        "-g0",
        "-Wno-psabi",
        "-Wno-attributes",
        "-fwrapv",
        "-fno-sanitize=signed-integer-overflow",
    ]
    run(kernels_program, compiler, tmp_path, flags, ["avx512", "generic", "avx512vbmi"])
