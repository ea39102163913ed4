"""What the CUDA backend does with a block, compiled for the processor. What is around it needs a GPU, and is not run.

Products are compared with equality: of activations and scales that are small integers every sum is exact.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from operands import random_blocks

from sherry_gguf import llama_cpp
from sherry_gguf.formats.sherry import SHERRY
from sherry_gguf.formats.sherry_2p import SHERRY_2P
from sherry_gguf.formats.sherry_g32 import SHERRY_G32
from sherry_gguf.formats.stq1_0 import STQ1_0
from sherry_gguf.formats.tensor_type import TensorType

pytestmark = pytest.mark.runtime

HEADERS = ("ggml-sherry.h", "ggml-sherry-g32.h", "ggml-sherry-2p.h", "ggml-stq1.h", "ggml-cuda/sherry.cuh")
Q8_1 = np.dtype([("d", np.float16), ("sum", np.float16), ("qs", np.int8, 32)])

types = pytest.mark.parametrize("of", [SHERRY, SHERRY_G32, SHERRY_2P, STQ1_0], ids=lambda of: of.name)


@pytest.fixture(scope="module")
def host(runtime: llama_cpp.Build, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The header between stand-ins for what it includes of ggml-cuda (cuda_host.cpp has them)."""
    folder = tmp_path_factory.mktemp("cuda")
    (folder / "ggml-cuda").mkdir()
    for name in HEADERS:
        shutil.copy(runtime.source / "ggml/src" / name, folder / name)
    (folder / "ggml-cuda/vecdotq.cuh").write_text("")
    command = [
        *shlex.split(os.environ.get("CXX", "c++")), "-std=c++17", "-O1", "-fPIC", "-shared", f"-I{folder}",
        f"-I{runtime.source / 'ggml/include'}", Path(__file__).with_name("cuda_host.cpp"), "-o", folder / "host.so",
        f"-L{runtime.bin_dir}", "-lggml-base", f"-Wl,-rpath,{runtime.bin_dir}",
    ]  # fmt: skip
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(folder / "host.so"))


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
