"""What the CUDA backend does with a block, compiled for the processor. What is around it needs a GPU, and is not run.

Products are compared with equality: of activations and scales that are small integers every sum is exact. Of tiles,
whose products are upstream's, all bytes have to be those that upstream's loader of Q8_0 writes for the same weights.
The kernel around them is run where it multiplies by dp4a, which is plain C++.
"""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from operands import F32, U8, random_blocks

from sherry_gguf import llama_cpp
from sherry_gguf.formats.sherry import SHERRY
from sherry_gguf.formats.sherry_2p import SHERRY_2P
from sherry_gguf.formats.sherry_g32 import SHERRY_G32
from sherry_gguf.formats.stq1_0 import STQ1_0
from sherry_gguf.formats.tensor_type import TensorType

pytestmark = pytest.mark.runtime

HEADERS = ("ggml-sherry.h", "ggml-sherry-g32.h", "ggml-sherry-2p.h", "ggml-stq1.h", "ggml-cuda/sherry.cuh")
Q8_0 = np.dtype([("d", np.float16), ("qs", np.int8, 32)])
Q8_1_MMQ = np.dtype([("d", np.float32, 4), ("qs", np.int8, 128)])
Q8_1 = np.dtype([("d", np.float16), ("sum", np.float16), ("qs", np.int8, 32)])

types = pytest.mark.parametrize("of", [SHERRY, SHERRY_G32, SHERRY_2P, STQ1_0], ids=lambda of: of.name)

tiled = pytest.mark.parametrize("of", [SHERRY, SHERRY_G32, STQ1_0], ids=lambda of: of.name)

# What the defines of ggml-cuda/common.cuh are, and the threads of a warp. Where mul_mat_q uses no tensor cores, all of
# the kernel is run.
DP4A = {
    "pascal": ("__CUDA_ARCH__=610", "WARP=32"),
    "volta": ("__CUDA_ARCH__=700", "WARP=32"),
    "gcn": ("GGML_USE_HIP", "GCN", "WARP=64"),
}
GPUS = {
    "turing and newer": ("__CUDA_ARCH__=900", "TURING_MMA_AVAILABLE", "WARP=32"),
    "cdna": ("GGML_USE_HIP", "CDNA", "AMD_MFMA_AVAILABLE", "WARP=64"),
    "rdna3": ("GGML_USE_HIP", "RDNA3", "AMD_WMMA_AVAILABLE", "WARP=32"),
    **DP4A,
}
# upstream's functions that are run, and what the others of their kind take
RUN = {
    "mmq-load-tiles.cuh": ("load_tiles_q8_0", "const char *, int *, const int, const int, const int"),
    "mmq-vec-dot.cuh": ("vec_dot_q8_0_q8_1_dp4a", "const int *, const int *, float *, const int"),
}


def compiled(runtime: llama_cpp.Build, folder: Path, program: str, defines: tuple[str, ...] = ()) -> ctypes.CDLL:
    """A program beside this file, with the headers in folder."""
    library = folder / "host.so"
    command = [
        *shlex.split(os.environ.get("CXX", "c++")), "-std=c++17", "-O1", "-fPIC", "-shared", f"-I{folder}",
        f"-I{runtime.source / 'ggml/include'}", *(f"-D{define}" for define in defines),
        Path(__file__).with_name(program), "-o", library, f"-L{runtime.bin_dir}", "-lggml-base",
        f"-Wl,-rpath,{runtime.bin_dir}",
    ]  # fmt: skip
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))


def copy_headers(runtime: llama_cpp.Build, folder: Path) -> None:
    """The headers of ours, between stand-ins for what they include of ggml-cuda (cuda_shims.h has them)."""
    (folder / "ggml-cuda").mkdir()
    for name in HEADERS:
        shutil.copy(runtime.source / "ggml/src" / name, folder / name)
    (folder / "ggml-cuda/vecdotq.cuh").write_text("")


@pytest.fixture(scope="module")
def host(runtime: llama_cpp.Build, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("cuda")
    copy_headers(runtime, folder)
    return compiled(runtime, folder, "cuda_host.cpp")


def function(source: str, name: str) -> str:
    found = re.search(rf"^template <[^>]*>[^;{{]*\b{name}\(.*?^}}$", source, re.DOTALL | re.MULTILINE)
    assert found, name
    return found[0]


def compiled_tiles(runtime: llama_cpp.Build, folder: Path, gpu: str) -> ctypes.CDLL:
    """Upstream's mmq.cuh, but for what starts its kernels, with the loader and the products of Q8_0; ours in full."""
    copy_headers(runtime, folder)
    source, to = runtime.source / "ggml/src", folder / "ggml-cuda"
    for path in (source / "ggml-common.h", *(source / "ggml-cuda").glob("mmq-config-*.cuh")):
        shutil.copy(path, folder / path.relative_to(source))
    shutil.copy(source / "ggml-cuda/sherry-mmq.cuh", to)
    for path in (folder / "cuda_fp16.h", folder / "cuda_bf16.h", to / "common.cuh"):
        path.write_text("")
    kernels, start, _ = (source / "ggml-cuda/mmq.cuh").read_text().partition("struct mmq_args {")
    assert start
    (to / "mmq.cuh").write_text(kernels)
    for header, (run, parameters) in RUN.items():
        kind = "_".join(run.split("_")[:2])
        others = sorted(set(re.findall(rf"\bggml_cuda_mmq_{kind}_\w+(?=<)", kernels)) - {f"ggml_cuda_mmq_{run}"})
        text = [f"template <ggml_type, int, bool, auto...> void {other}({parameters}) {{}}" for other in others]
        text.append(function((source / "ggml-cuda" / header).read_text(), f"ggml_cuda_mmq_{run}"))
        (to / header).write_text("\n".join(text))
    vecdotq = (source / "ggml-cuda/vecdotq.cuh").read_text()
    text = re.findall(r"^#define VDR_\w+_MMQ +\d+", vecdotq, re.MULTILINE)
    (to / "vecdotq.cuh").write_text("\n".join([*text, function(vecdotq, "vec_dot_q8_0_q8_1_impl")]))
    return compiled(runtime, folder, "cuda_tiles.cpp", GPUS[gpu])


@pytest.fixture(scope="module", params=GPUS)
def tiles(
    runtime: llama_cpp.Build, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> ctypes.CDLL:
    return compiled_tiles(runtime, tmp_path_factory.mktemp("tiles"), request.param)


@pytest.fixture(scope="module", params=DP4A)
def kernels(
    runtime: llama_cpp.Build, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> ctypes.CDLL:
    return compiled_tiles(runtime, tmp_path_factory.mktemp("kernels"), request.param)


@types
def test_dequantized_weights_are_those_of_the_format(host: ctypes.CDLL, of: TensorType) -> None:
    packed = random_blocks(of, 9, 512)
    found = np.empty((9, 512), np.float32)
    dequantize = getattr(host, f"host_dequantize_{of.name.lower()}")
    dequantize(packed.ctypes.data_as(ctypes.c_void_p), found.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(9 * 512))
    np.testing.assert_array_equal(found, of.dequantize(packed))


@types
def test_products_are_exact(host: ctypes.CDLL, of: TensorType) -> None:
    rng = np.random.default_rng(0)
    packed = random_blocks(of, 64, 512)
    blocks = packed.reshape(-1, of.block_bytes // of.planes)
    blocks[:, -2:] = rng.integers(1, 5, (len(blocks), 1)).astype(np.float16).view(np.uint8)
    y = np.zeros(512 // 32, Q8_1)
    y["qs"] = rng.integers(-127, 128, y["qs"].shape)
    y["d"] = rng.integers(1, 5, y.shape)
    dot = getattr(host, f"host_dot_{of.name.lower()}")
    dot.restype = ctypes.c_float
    k = ctypes.c_int64(512)
    found = [dot(ctypes.c_void_p(row.ctypes.data), ctypes.c_void_p(y.ctypes.data), k) for row in packed]
    x = (y["qs"].astype(np.float64) * y["d"].astype(np.float64)[:, None]).reshape(-1)
    np.testing.assert_array_equal(found, of.dequantize(packed).astype(np.float64) @ x)


def as_q8_0(of: TensorType, blocks: U8) -> U8:
    """blocks uint8[n, block_bytes] -> blocks of Q8_0 uint8[n * of.block / 32, 34]: its integers are the codes"""
    ones = blocks.copy()
    ones[:, -2:] = np.ones(1, np.float16).view(np.uint8)
    result = np.empty(len(blocks) * of.block // 32, Q8_0)
    result["qs"] = of.dequantize(ones).reshape(-1, 32)
    result["d"] = np.repeat(blocks[:, -2:].copy().view(np.float16), of.block // 32)
    return result.view(np.uint8)


def loaded(tiles: ctypes.CDLL, name: str, blocks: U8, *place: int, fallback: bool) -> U8:
    """The tile in shared memory, and what is left as it was."""
    tile = np.full(tiles.host_tile_size() * 4, 0xA5, np.uint8)
    load = getattr(tiles, f"host_load_{name}")
    load(ctypes.c_void_p(blocks.ctypes.data), ctypes.c_void_p(tile.ctypes.data), *place, ctypes.c_bool(fallback))
    return tile


@pytest.mark.parametrize(
    ("of", "k"),
    [(SHERRY, 768), (SHERRY, 640), (SHERRY_G32, 768), (SHERRY_G32, 672), (SHERRY_G32, 32), (STQ1_0, 768)],
    ids=lambda of: getattr(of, "name", str(of)),
)
@pytest.mark.parametrize("missing", [None, 0, 1, 31, 62, 63])
def test_tiles_are_those_of_q8_0(tiles: ctypes.CDLL, of: TensorType, k: int, missing: int | None) -> None:
    """All tiles of a row, of which the last may have weights beyond its end. Missing rows: the matrix is too short."""
    rows = tiles.host_tile_rows()
    last = rows - 1 - (missing or 0)
    packed = random_blocks(of, last + 1, k).reshape(-1, of.block_bytes)
    beyond = np.zeros((512 // of.block, of.block_bytes), np.uint8)  # buffers of matrices end in such zeros
    blocks = np.concatenate([packed, beyond])
    q8_0 = as_q8_0(of, blocks)
    for first in range(0, k, 256):
        fallback = missing is not None
        found, expected = (
            loaded(tiles, name, data, first // block, last, k // block, fallback=fallback)
            for name, data, block in ((of.name.lower(), blocks, of.block), ("q8_0", q8_0, 32))
        )
        np.testing.assert_array_equal(found, expected)
        written = np.count_nonzero(expected.view(np.uint32) != 0xA5A5A5A5)
        assert written == (last + 1) * (64 + 8)


@tiled
def test_tiles_have_the_sizes_of_q8_0(tiles: ctypes.CDLL, of: TensorType) -> None:
    assert tiles.host_configs_that_differ(of.type_id) == 0


def product(
    kernels: ctypes.CDLL, of: TensorType, w: U8, x: npt.NDArray[np.int8], d: F32, of_expert: list[int], blocks: int
) -> F32:
    """w[experts, rows, bytes], x[n, k] with scales d[n, k/32] -> [n, rows]; x are sorted by their experts."""
    experts, m = w.shape[:2]
    n, k = x.shape
    # 128 activations of all tokens, and then the next; a tile has 16, which goes beyond the last
    y = np.zeros(-(-k // 512) * 4 * n + 16, Q8_1_MMQ)
    for part in range(k // 32):
        column = y[part // 4 * n : part // 4 * n + n]
        column["qs"][:, part % 4 * 32 : part % 4 * 32 + 32] = x[:, 32 * part : 32 * part + 32]
        column["d"][:, part % 4] = d[:, part]
    padded = np.concatenate([w.reshape(-1), np.zeros(512 // of.block * of.block_bytes, np.uint8)])
    ids = np.concatenate([np.random.default_rng(n).permutation(n), np.zeros(16)]).astype(np.int32)
    bounds = np.searchsorted(of_expert, np.arange(experts + 1)).astype(np.int32)
    found = np.full((n, m), np.nan, np.float32)
    run = getattr(kernels, f"host_product_{of.name.lower()}")
    at = [ctypes.c_void_p(array.ctypes.data) for array in (padded, y, found, ids, bounds)]
    with_ids = at[3:] if experts > 1 else [None, None]
    run(*at[:3], m, n, k, experts, *with_ids, blocks)
    return found[ids[:n]] if experts > 1 else found  # ids say where the product of a token goes


@tiled
@pytest.mark.parametrize(
    ("m", "n", "k", "experts"), [(128, 20, 768, 1), (130, 9, 512, 1), (129, 16, 640, 1), (70, 21, 512, 3)]
)
def test_kernels_products_are_exact(kernels: ctypes.CDLL, of: TensorType, m: int, n: int, k: int, experts: int) -> None:
    """mul_mat_q as upstream has it; experts of no, of some and of more tokens than a tile has; and sums in parts."""
    k -= k % of.block
    rng = np.random.default_rng(m)
    w = random_blocks(of, experts, m, k)
    scales = w.reshape(-1, of.block_bytes)[:, -2:]
    scales[:] = rng.integers(1, 5, (len(scales), 1)).astype(np.float16).view(np.uint8)
    x = rng.integers(-127, 128, (n, k)).astype(np.int8)
    d = rng.integers(1, 5, (n, k // 32)).astype(np.float32)
    of_expert = [0] * n if experts == 1 else [0, 0, 0] + [2] * (n - 3)
    weights = of.dequantize(w.reshape(-1, w.shape[-1])).astype(np.float64).reshape(experts, m, k)
    expected = np.einsum("nmk,nk->nm", weights[of_expert], x * np.repeat(d, 32, axis=1).astype(np.float64))
    for blocks in (1, 3, 5) if kernels.host_has_parts() and experts == 1 else (1,):
        np.testing.assert_array_equal(product(kernels, of, w, x, d, of_expert, blocks), expected)


def test_instances_are_what_upstreams_script_writes(runtime: llama_cpp.Build, tmp_path: Path) -> None:
    folder = runtime.source / "ggml/src/ggml-cuda/template-instances"
    subprocess.run([sys.executable, folder / "generate_cu_files.py"], cwd=tmp_path, check=True)
    for name in ("sherry", "sherry_g32", "stq1_0"):
        file = f"mmq-instance-{name}.cu"
        assert (tmp_path / file).read_text() == (folder / file).read_text()
