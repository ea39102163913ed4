"""One library for each kind of processor, of which the one that runs takes the best: each has the kernels it should.

Distributions build ggml like this. It also puts kernels into the matrix product that a build for this machine does not
take, because it has better ones.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sherry_gguf import llama_cpp
from sherry_gguf.formats import sherry
from sherry_gguf.formats.groups import CODES, GROUP, PATTERNS
from sherry_gguf.formats.sherry import SHERRY

pytestmark = [
    pytest.mark.runtime,
    pytest.mark.skipif(
        (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="the variants are those of x86-64 Linux"
    ),
]

# of tiles, of rows
KERNELS = {"x64": ["generic", "generic"], "haswell": ["avx2", "avx2"], "skylakex": ["avx512", "avx2"]}

# Optimized as far as it does not take long. Not the target "ggml": it wants all variants.
DEFINES = [
    "GGML_NATIVE=OFF",
    "GGML_BACKEND_DL=ON",
    "GGML_CPU_ALL_VARIANTS=ON",
    "CMAKE_C_FLAGS_RELEASE=-O1",
    "CMAKE_CXX_FLAGS_RELEASE=-O1",
]

# A process for each library: two in one process would share what has the same name.
SCRIPT = """
import ctypes, importlib.util, json, sys
import numpy as np

scripts, conftest, base, cpu, operands, result = sys.argv[1:]
sys.path.append(scripts)
spec = importlib.util.spec_from_file_location("native_conftest", conftest)
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
spec.loader.exec_module(module)
ggml = module.Ggml(ctypes.CDLL(base), ctypes.CDLL(cpu))

best = []
for find, *arguments in (ggml.cpu.ggml_sherry_tile_kernel_at, 0), (ggml.cpu.ggml_sherry_best_row_kernel,):
    find.restype = ctypes.POINTER(ctypes.c_char_p)  # its name comes first
    best.append(find(*arguments).contents.value.decode())
score = ggml.cpu.ggml_backend_score()  # 0: this processor cannot run it
if score:
    ggml.cpu.ggml_cpu_init()
    arrays = np.load(operands)
    weights = arrays["weights"]
    activations = [arrays[name] for name in arrays.files if name != "weights"]
    np.savez(result, *(ggml.compute("mul_mat", weights, x, tiles=True) for x in activations))
print(json.dumps([best, score]))
"""


# ggml looks for the best library in a folder. Others may stay loaded, so it is known by what it answers with.
LOADS = """
import ctypes, json, pathlib, sys

path = pathlib.Path(sys.argv[1])
ggml = ctypes.CDLL(sys.argv[1])

def call(name, *arguments, restype=ctypes.c_void_p):
    function = ctypes.CFUNCTYPE(restype, *map(type, arguments))((name, ggml))
    value = function(*arguments)
    return restype(value) if restype is ctypes.c_void_p else value

call("ggml_backend_load_all_from_path", ctypes.c_char_p(bytes(path.parent)))
cpu = call("ggml_backend_reg_by_name", ctypes.c_char_p(b"CPU"))
assert cpu, "no library for this processor was loaded"
extra = call("ggml_backend_reg_get_proc_address", cpu, ctypes.c_char_p(b"ggml_backend_dev_get_extra_bufts"))
device = call("ggml_backend_reg_dev_get", cpu, ctypes.c_size_t(0))

buffers = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(extra.value)(device)  # ends with NULL
names = []
while buffers[len(names)]:
    name = call("ggml_backend_buft_name", ctypes.c_void_p(buffers[len(names)]), restype=ctypes.c_char_p)
    names.append(name.decode())

for line in open("/proc/self/maps"):
    begin, end = (int(address, 16) for address in line.split()[0].split("-"))
    if begin <= extra.value < end:
        library = line.split()[-1]
first = ctypes.CDLL(library).ggml_sherry_tile_kernel_at
first.restype = ctypes.POINTER(ctypes.c_char_p)
print(json.dumps([pathlib.Path(library).name, first(0).contents.value.decode(), names]))
"""


@pytest.fixture(scope="module")
def build() -> llama_cpp.Build:
    return llama_cpp.build([f"ggml-cpu-{variant}" for variant in KERNELS], defines=DEFINES)


@pytest.fixture(scope="module")
def problem() -> tuple[Any, list[Any], list[Any]]:
    """Blocks of weights, activations, and products: integers that come out exactly, as all scales are 1."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, CODES, (300, 20 * SHERRY.block // GROUP), dtype=np.uint8)
    weights = sherry.BLOCKS.pack(codes, np.ones((300, 20), np.float32))
    lanes = [rng.integers(-127, 128, (tokens, 20 * SHERRY.block)) for tokens in (1, 7, 20)]
    for x in lanes:
        x[:, :: SHERRY.block] = 127
    return weights, [x.astype(np.float32) for x in lanes], [x @ PATTERNS[codes].reshape(300, -1).T for x in lanes]


@pytest.fixture(scope="module")
def ran(
    build: llama_cpp.Build, problem: Any, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Of each variant: its kernels, its score, and its products if the score is not 0."""
    folder = tmp_path_factory.mktemp("variants")
    weights, activations, _ = problem
    np.savez(folder / "operands.npz", *activations, weights=weights)
    out = {}
    for variant in KERNELS:
        libraries = [build.bin_dir / name for name in ("libggml-base.so", f"libggml-cpu-{variant}.so")]
        arrays = folder / "operands.npz", folder / f"{variant}.npz"
        files = [repository / "scripts", Path(__file__).with_name("conftest.py"), *libraries, *arrays]
        command = [sys.executable, "-c", SCRIPT, *map(str, files)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        kernels, score = json.loads(done.stdout)
        out[variant] = kernels, score, list(np.load(arrays[1]).values()) if score else None
    return out


@pytest.mark.parametrize("variant", KERNELS)
def test_kernels_of_a_variant(ran: dict[str, Any], variant: str) -> None:
    assert ran[variant][0] == KERNELS[variant]


@pytest.mark.parametrize("variant", KERNELS)
def test_products_of_a_variant(ran: dict[str, Any], problem: Any, variant: str) -> None:
    products = ran[variant][2]
    if products is None:
        pytest.skip(f"this machine cannot run {variant}")
    for product, expected in zip(products, problem[2], strict=True):
        np.testing.assert_array_equal(product, expected.reshape(-1))


@pytest.fixture(scope="module")
def loader(build: llama_cpp.Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """libggml with nothing beside it but these variants: what it is made of, without its target, which wants all."""
    compiler = os.environ.get("CXX", "c++").split()
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"no C++ compiler {compiler[0]}, but cmake found one")
    folder = tmp_path_factory.mktemp("loader")
    variants = [build.bin_dir / f"libggml-cpu-{variant}.so" for variant in KERNELS]
    for library in (*build.bin_dir.glob("libggml-base.so*"), *variants):
        (folder / library.name).symlink_to(library)
    ggml = build.source / "ggml"
    sources = [ggml / "src/ggml-backend-reg.cpp", ggml / "src/ggml-backend-dl.cpp"]
    options = ["-std=c++17", "-O0", "-fPIC", "-shared", "-DGGML_BACKEND_DL", "-DGGML_BACKEND_SHARED", "-DGGML_SHARED"]
    includes = [f"-I{ggml / part}" for part in ("include", "src")]
    libraries = [folder / "libggml-base.so", "-Wl,-rpath,$ORIGIN", "-ldl"]
    command = [*compiler, *options, *includes, *sources, *libraries, "-o", folder / "libggml.so"]
    subprocess.run([str(part) for part in command], check=True)
    return folder / "libggml.so"


def test_ggml_loads_the_best_variant(loader: Path) -> None:
    flags = set(Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split())
    if {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"} <= flags:
        best = "skylakex"
    elif {"avx2", "fma", "f16c", "bmi2"} <= flags:
        best = "haswell"
    else:
        best = "x64"
    done = subprocess.run([sys.executable, "-c", LOADS, str(loader)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    library, kernel, buffer_types = json.loads(done.stdout)
    assert (library, kernel) == (f"libggml-cpu-{best}.so", KERNELS[best][0])
    assert "CPU_SHERRY" in buffer_types  # where llama.cpp looks for one to put weights in
