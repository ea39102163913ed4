"""Q8_0 in tiles of 16 rows: with each set of instructions that this processor has, and as ggml computes with it.

Results are compared with equality. A sum inside a block is an exact integer; then a result is, block after block,
fma(sum, scale of the row * scale of the activations, result so far), which extended precision rounds as an fma does.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from graphs import F32, graph

from sherry_gguf import llama_cpp

pytestmark = [
    pytest.mark.runtime,
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the layout is of x86"),
]

QK, ROWS = 32, 16
BLOCK = np.dtype([("d", np.float16), ("qs", np.int8, QK)])
FOUR = np.dtype([("d", np.float16, 4), ("qs", np.int8, (4, 4, 8))])  # qs[j, t]: activations 8j to 8j + 7 of token t
TILE = np.dtype([("d", np.float16, ROWS), ("qs", np.int8, (8, ROWS, 4))])  # qs[j, r]: weights 4j to 4j + 3 of row r

Blocks = npt.NDArray[np.void]

# what a compiler is told, and what /proc/cpuinfo calls it
SETS = {
    "avx2": ("-mavx2 -mfma -mf16c", {"avx2", "fma", "f16c"}),
    "avxvnni": ("-mavx2 -mfma -mf16c -mavxvnni", {"avx2", "fma", "f16c", "avx_vnni"}),
    "avx512vnni": ("-mavx2 -mfma -mf16c -mavx512f -mavx512vnni", {"avx2", "fma", "f16c", "avx512f", "avx512_vnni"}),
}


def random_rows(rows: int, k: int) -> Blocks:
    """Any bytes, -128 among them, and scales from 0.001 to 1."""
    rng = np.random.default_rng(rows + k)
    blocks = np.zeros((rows, k // QK), BLOCK)
    blocks["d"] = rng.uniform(0.001, 1, blocks.shape)
    blocks["qs"] = rng.integers(-128, 128, (*blocks.shape, QK))
    blocks["qs"][0] = -128
    return blocks


def random_activations(tokens: int, k: int) -> Blocks:
    """Whole numbers that are quantized to themselves, times powers of two: the largest of each block is 127."""
    rng = np.random.default_rng(tokens + k)
    blocks = np.zeros((tokens, k // QK), BLOCK)
    blocks["d"] = 2.0 ** rng.integers(-4, 4, blocks.shape)
    blocks["qs"] = rng.integers(-127, 128, (*blocks.shape, QK))
    blocks["qs"][..., 5] = 127
    return blocks


def product(w: Blocks, x: Blocks) -> npt.NDArray[np.float32]:
    """[rows, n] and [tokens, n] blocks -> [tokens, rows], in the order of the kernels."""
    sums = np.einsum("rbi,tbi->btr", w["qs"].astype(np.int64), x["qs"].astype(np.int64))
    scales = w["d"].astype(np.float32).T[:, None, :] * x["d"].astype(np.float32).T[:, :, None]
    result = np.zeros(sums.shape[1:], np.float32)
    for of_block, scale in zip(sums, scales, strict=True):
        result = (of_block * scale.astype(np.longdouble) + result).astype(np.float32)
    return result


def pointer(array: npt.NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


@pytest.fixture(scope="module", params=SETS)
def kernel(
    request: pytest.FixtureRequest, runtime: llama_cpp.Build, tmp_path_factory: pytest.TempPathFactory
) -> ctypes.CDLL:
    flags, features = SETS[request.param]
    has = set(Path("/proc/cpuinfo").read_text().split()) if Path("/proc/cpuinfo").exists() else set()
    if not features <= has:
        pytest.skip(f"this processor has no {', '.join(sorted(features - has))}")
    ggml, library = runtime.source / "ggml", tmp_path_factory.mktemp("q8_0") / "tiles.so"
    command = [*shlex.split(os.environ.get("CXX", "c++")), "-std=c++17", "-O2", "-fPIC", "-shared", *flags.split()]
    command += [f"-I{ggml / folder}" for folder in ("include", "src", "src/ggml-cpu")]
    done = subprocess.run(
        [*command, Path(__file__).with_name("q8_0_tiles.cpp"), "-o", library], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))


@pytest.mark.parametrize("rows", [16, 80])
@pytest.mark.parametrize("k", [32, 96, 2048])
def test_every_set_of_instructions_gives_the_same_bits(kernel: ctypes.CDLL, rows: int, k: int) -> None:
    w, x = random_rows(rows, k), random_activations(8, k)
    tiles = np.zeros((rows // ROWS, k // QK), TILE)
    kernel.repack(ctypes.c_int64(rows), ctypes.c_int64(k // QK), pointer(w), pointer(tiles))
    np.testing.assert_array_equal(tiles["d"].swapaxes(1, 2).reshape(rows, -1), w["d"])
    np.testing.assert_array_equal(tiles["qs"].transpose(0, 3, 1, 2, 4).reshape(rows, -1), w["qs"].reshape(rows, -1))

    found = np.full((8, rows + 3), np.nan, np.float32)  # results of a token need not follow those of another
    fours = np.zeros((2, k // QK), FOUR)
    fours["d"] = x["d"].reshape(2, 4, -1).swapaxes(1, 2)
    fours["qs"] = x["qs"].reshape(2, 4, -1, 4, 8).transpose(0, 2, 3, 1, 4)
    kernel.gemm(k, pointer(found), ctypes.c_size_t(rows + 3), pointer(tiles), pointer(fours), 8, rows)
    np.testing.assert_array_equal(found[:, :rows], product(w, x))
    assert np.isnan(found[:, rows:]).all()
    for t in range(8):
        kernel.gemv(k, pointer(found[t]), pointer(tiles), pointer(x[t]), rows)
    np.testing.assert_array_equal(found[:, :rows], product(w, x))
    assert np.isnan(found[:, rows:]).all()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("n", [1, 3, 4, 9, 32])
@pytest.mark.parametrize("rows", [16, 48, 1040])
def test_ggml_multiplies_by_it(ggml: Any, q8_0: Any, rows: int, n: int, threads: int) -> None:
    w, x = random_rows(rows, 96), random_activations(n, 96)
    values = (x["qs"] * x["d"][..., None].astype(np.float32)).reshape(n, -1)
    packed = np.ascontiguousarray(w).view(np.uint8).reshape(rows, -1)
    found = ggml.compute("mul_mat", packed, values, tiles=True, threads=threads, kind=q8_0)
    np.testing.assert_array_equal(found.reshape(n, rows), product(w, x))


@pytest.mark.parametrize(("rows", "is_taken"), [(48, True), (50, False)])
def test_rows_are_taken_by_sixteens(ggml: Any, q8_0: Any, rows: int, is_taken: bool) -> None:
    """Otherwise llama.cpp leaves them where they are, as it has always done on x86."""
    with graph(ggml, q8_0, rows, 96) as g:
        assert g.is_supported(g.operator("mul_mat", g.weights, g.tensor(F32, 96, 5))) == is_taken
