"""The rate of SHERRY's vec_dot beside those of other types, in the same build, on one core.

    python scripts/bench_vec_dot.py [--types tq2_0 q8_0 ...] [--rows 16] [--length 4096] [--threads 1] [--json FILE]

First it checks: the integer sums of the kernel equal those of the generic one. Then it times vec_dot as ggml's matrix
product calls it: all rows of a matrix with the same activations, in a loop in C (compiled here; calls from Python would
cost as much as a row). The default, 16 rows of 4096, stays in the first-level cache: it is the kernel that is timed,
not the memory; `--rows 100000` streams from memory instead, as generating text does. Threads share the rows. The types
take turns, sample by sample, so that what else the machine does hits all of them; the median is given, and the best.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sherry_gguf import llama_cpp
from sherry_gguf.errors import SherryError
from sherry_gguf.format import BLOCK, TYPE_ID

SAMPLE_SECONDS = 1e-3

LOOP = """
#include <stddef.h>
#include <time.h>

typedef void (*vec_dot_t)(int, float *, size_t, const void *, size_t, const void *, size_t, int);

double seconds(vec_dot_t f, int n, int rows, size_t row_size, const char * x, const char * y, int repeat) {
    struct timespec a, b;
    float s;
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (int i = 0; i < repeat; ++i) {
        for (int r = 0; r < rows; ++r) {
            f(n, &s, 0, x + r*row_size, 0, y, 0, 1);
        }
    }
    clock_gettime(CLOCK_MONOTONIC, &b);
    return (double) (b.tv_sec - a.tv_sec) + 1e-9*(double) (b.tv_nsec - a.tv_nsec);
}
"""


class TraitsCpu(ctypes.Structure):
    """ggml_type_traits_cpu of ggml-cpu.h."""

    _fields_ = (
        ("from_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("vec_dot", ctypes.c_void_p),
        ("vec_dot_type", ctypes.c_int),
        ("nrows", ctypes.c_int64),
    )


class Ggml:
    def __init__(self, build: llama_cpp.Build) -> None:
        self.base, self.cpu = build.lib("ggml-base"), build.lib("ggml-cpu")
        self.base.ggml_type_name.restype = ctypes.c_char_p
        self.base.ggml_row_size.restype = ctypes.c_size_t
        self.cpu.ggml_get_type_traits_cpu.restype = ctypes.POINTER(TraitsCpu)
        self.cpu.ggml_cpu_init()

    def type_id(self, name: str) -> int:
        for type_id in range(TYPE_ID + 1):  # the last one that a file can hold
            if self.base.ggml_type_name(type_id) == name.encode():
                return type_id
        raise SherryError(f"this build has no type {name!r}")

    def traits(self, type_id: int) -> Any:
        return self.cpu.ggml_get_type_traits_cpu(type_id).contents

    def quantize(self, type_id: int, values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        """float32[rows, k] -> bytes uint8[rows, row_size]."""
        rows, k = values.shape
        size = self.base.ggml_row_size(type_id, ctypes.c_int64(k))
        out = np.zeros((rows, size), dtype=np.uint8)
        for row in range(rows):
            self.traits(type_id).from_float(values[row].ctypes.data, out[row].ctypes.data, k)
        return out


def compile_loop(folder: Path) -> Any:
    (folder / "loop.c").write_text(LOOP, encoding="ascii")
    library = folder / "loop.so"
    compiler = os.environ.get("CC", "cc").split()
    subprocess.run([*compiler, "-O2", "-shared", "-fPIC", str(folder / "loop.c"), "-o", str(library)], check=True)
    function = ctypes.CDLL(str(library)).seconds
    function.restype = ctypes.c_double
    return function


def check(ggml: Ggml, weights: npt.NDArray[np.uint8], activations: npt.NDArray[np.uint8], length: int) -> None:
    kernels = [name for name in ("generic", "avx2") if hasattr(ggml.cpu, f"ggml_sherry_isums_{name}")]
    sums = {name: np.empty(length // BLOCK, dtype=np.int32) for name in kernels}
    for row in weights:
        for name, out in sums.items():
            data = (ctypes.c_void_p(array.ctypes.data) for array in (out, row, activations))
            getattr(ggml.cpu, f"ggml_sherry_isums_{name}")(length, *data)
            if not np.array_equal(sums["generic"], out):
                raise SherryError(f"the integer sums of the {name} kernel differ from the generic one's")


def run_threads(
    pool: ThreadPoolExecutor, seconds: Any, vec_dot: int, parts: list[Any], activations: Any, length: int, repeat: int
) -> float:
    """Seconds until the last thread is done with its rows (ctypes lets go of Python's lock)."""

    def run(rows: npt.NDArray[np.uint8]) -> float:
        size, x, y = rows.shape[1], rows.ctypes.data, activations.ctypes.data
        pointers = ctypes.c_size_t(size), ctypes.c_void_p(x), ctypes.c_void_p(y)
        result: float = seconds(ctypes.c_void_p(vec_dot), length, len(rows), *pointers, repeat)
        return result

    return max(pool.map(run, parts))


def measure(names: list[str], rows: int, length: int, samples: int, threads: int) -> dict[str, dict[str, float]]:
    """Weights per second of each type: median and best of the samples."""
    ggml = Ggml(llama_cpp.build())
    rng = np.random.default_rng(0)
    distinct = min(rows, 64)  # a large matrix repeats its rows: what they hold does not change the time
    weights = rng.standard_normal((distinct, length)).astype(np.float32)
    x = rng.standard_normal((1, length)).astype(np.float32)

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(threads) as pool:
        seconds = compile_loop(Path(folder))
        calls: dict[str, Any] = {}
        for name in names:
            traits = ggml.traits(ggml.type_id(name))
            quantized = np.tile(ggml.quantize(ggml.type_id(name), weights), (-(-rows // distinct), 1))[:rows]
            activations = ggml.quantize(traits.vec_dot_type, x)
            if name == "sherry":
                check(ggml, quantized[:distinct], activations[0], length)

            parts = [part for part in np.array_split(quantized, threads) if len(part)]
            calls[name] = partial(run_threads, pool, seconds, traits.vec_dot, parts, activations, length)

        repeats = {name: max(1, int(SAMPLE_SECONDS * 8 / call(8))) for name, call in calls.items()}
        rates: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(samples):
            for name, call in calls.items():
                rates[name].append(repeats[name] * rows * length / call(repeats[name]))
    return {name: {"median": statistics.median(rate), "best": max(rate)} for name, rate in rates.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description="vec_dot of SHERRY beside other types, in weights per second")
    parser.add_argument("--types", nargs="+", default=["tq2_0", "q4_0", "q8_0"], help="types to compare with")
    parser.add_argument("--rows", type=int, default=16, help="rows of the matrix (default: 16, in cache)")
    parser.add_argument("--length", type=int, default=4096, help="weights in a row, a multiple of 256 (default: 4096)")
    parser.add_argument("--samples", type=int, default=300, help="samples of each type (default: 300)")
    parser.add_argument("--threads", type=int, default=1, help="share the rows (default: 1)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    if (
        arguments.length % 256
        or arguments.length <= 0
        or arguments.rows <= 0
        or arguments.samples <= 0
        or arguments.threads <= 0
    ):
        parser.error("--length is a positive multiple of 256; --rows, --samples and --threads are positive")

    try:
        shape = arguments.rows, arguments.length
        rates = measure(["sherry", *arguments.types], *shape, arguments.samples, arguments.threads)
    except SherryError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"vec_dot, {arguments.rows} rows of {arguments.length} weights, {arguments.threads} threads, Gweights/s")
    print(f"{'type':8} {'median':>8} {'best':>8} {'sherry is':>10}")
    for name, rate in rates.items():
        ratio = rates["sherry"]["median"] / rate["median"]
        print(f"{name:8} {rate['median'] / 1e9:8.1f} {rate['best'] / 1e9:8.1f} {ratio:9.2f}x")
    if arguments.json:
        arguments.json.write_text(json.dumps(rates, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
