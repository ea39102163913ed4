"""The archive of a release: a library of kernels for each kind of processor, of which the one that runs takes the best.

It is made by the script that makes a release's, only without optimization, which takes a quarter of the time. It also
puts kernels into the matrix product that a build for this machine does not take, because it has better ones.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import release_archive
from asking import ask

from sherry_gguf import llama_cpp
from sherry_gguf.cli import main
from sherry_gguf.formats import sherry
from sherry_gguf.formats.groups import CODES, GROUP, PATTERNS
from sherry_gguf.formats.sherry import SHERRY
from sherry_gguf.parity.runtime import open_logits

pytestmark = [
    pytest.mark.runtime,
    pytest.mark.skipif(
        (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="the variants are those of x86-64 Linux"
    ),
]

# of tiles, all that the library has, and then of rows, the best
NONE, AVX2 = [["generic"], "generic"], [["avx2", "generic"], "avx2"]
AVX512, VBMI = [["avx512", "avx2", "generic"], "avx2"], [["avx512", "avx512vbmi", "avx2", "generic"], "avx2"]
AMX = [["avx512", "avx512vbmi", "amx", "avx2", "generic"], "avx2"]
KERNELS: dict[str, list[Any]] = {
    "x64": NONE, "sse42": NONE, "sandybridge": NONE, "ivybridge": NONE, "piledriver": NONE,
    "haswell": AVX2, "alderlake": AVX2,
    "skylakex": AVX512, "cascadelake": AVX512, "cooperlake": AVX512,
    "cannonlake": VBMI, "icelake": VBMI, "zen4": VBMI,
    "sapphirerapids": AMX,
}  # fmt: skip

TARGET = "sherry-logits"
DEFINES = ["CMAKE_C_FLAGS_RELEASE=-O0", "CMAKE_CXX_FLAGS_RELEASE=-O0"]

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

names = ctypes.POINTER(ctypes.c_char_p)  # a kernel's name comes first
at, best = ggml.cpu.ggml_sherry_tile_kernel_at, ggml.cpu.ggml_sherry_best_row_kernel
at.restype = best.restype = names
tiles = []
while kernel := at(ctypes.c_size_t(len(tiles))):
    tiles.append(kernel.contents.value.decode())
kernels = tiles, best().contents.value.decode()
score = ggml.cpu.ggml_backend_score()  # 0: this processor cannot run it
if score:
    ggml.cpu.ggml_cpu_init()
    arrays = np.load(operands)
    weights = arrays["weights"]
    activations = [arrays[name] for name in arrays.files if name != "weights"]
    np.savez(result, *(ggml.compute("mul_mat", weights, x, tiles=True) for x in activations))
print(json.dumps([kernels, score]))
"""


# A host whose executable and folder are elsewhere. The library that ggml loaded is known by what it answers with.
LOADS = """
import ctypes, json, pathlib, sys

ggml = ctypes.CDLL(sys.argv[1])

def call(name, *arguments, restype=ctypes.c_void_p):
    function = ctypes.CFUNCTYPE(restype, *map(type, arguments))((name, ggml))
    value = function(*arguments)
    return restype(value) if restype is ctypes.c_void_p else value

call("ggml_backend_load_all")
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
        library = line.rstrip().split(maxsplit=5)[-1]  # a path may have spaces
first = ctypes.CDLL(library).ggml_sherry_tile_kernel_at
first.restype = ctypes.POINTER(ctypes.c_char_p)
print(json.dumps([pathlib.Path(library).name, first(0).contents.value.decode(), names]))
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return release_archive.make(tmp_path_factory.mktemp("release"), [TARGET], DEFINES, None)


@pytest.fixture(scope="module")
def other_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("another machine")


@pytest.fixture(scope="module")
def build(archive: Path, other_cache: Path) -> llama_cpp.Build:
    """What `sherry-gguf build --prebuilt` makes of it in an empty cache: nothing of it lies where it was built."""
    with pytest.MonkeyPatch.context() as elsewhere:
        elsewhere.setenv("SHERRY_GGUF_CACHE", str(other_cache))
        assert main(["build", "--prebuilt", str(archive)]) == 0
        return llama_cpp.find_build()


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


def test_every_variant_has_the_kernels(build: llama_cpp.Build) -> None:
    names = {path.name for path in build.bin_dir.glob("libggml-cpu-*.so")}
    assert names == {f"libggml-cpu-{variant}.so" for variant in KERNELS}


def test_variants_were_run(ran: dict[str, Any]) -> None:
    """Three at least: any x86-64 machine of the last ten years runs x64, sse42 and haswell."""
    assert sum(score > 0 for _, score, _ in ran.values()) >= 3


def test_ggml_finds_the_best_variant_from_another_folder(
    build: llama_cpp.Build, ran: dict[str, Any], tmp_path: Path
) -> None:
    best = max(ran, key=lambda variant: ran[variant][1])
    command = [sys.executable, "-c", LOADS, build.bin_dir / "libggml.so"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    library, kernel, buffer_types = json.loads(done.stdout)
    assert (library, kernel) == (f"libggml-cpu-{best}.so", KERNELS[best][0][0])
    assert "CPU_SHERRY" in buffer_types  # where llama.cpp looks for one to put weights in


def test_which_names_the_kernel_of_the_best_variant(
    ran: dict[str, Any], other_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHERRY_GGUF_CACHE", str(other_cache))
    assert main(["which", "--kernel"]) == 0
    best = max(ran, key=lambda variant: ran[variant][1])
    assert capsys.readouterr().out.strip() in KERNELS[best][0]  # the fastest here


def test_a_model_computes_as_with_a_native_build(
    build: llama_cpp.Build, runtime: llama_cpp.Build, sherry_gguf_file: Path, tmp_path: Path
) -> None:
    tokens = np.arange(5, 37, dtype=np.int32)
    logits = []
    for made in (build, runtime):
        with open_logits(made.program(TARGET), sherry_gguf_file, len(tokens), 0, threads=2) as compute:
            logits.append(compute(tokens))
    assert np.isfinite(logits[0]).all()
    # attention and embeddings are upstream's, whose sums come in another order
    assert np.abs(logits[0] - logits[1]).max() < 0.1 * logits[1].std()


def test_python_runs_a_model_with_its_libraries(
    build: llama_cpp.Build, llama_cpp_python: Path, sherry_gguf_file: Path, tmp_path: Path
) -> None:
    assert len(ask(llama_cpp_python, build.bin_dir, sherry_gguf_file, tmp_path).split()) > 4
