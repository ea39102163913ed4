#!/usr/bin/env python3
"""The rate of ggml's whole matrix product, MUL_MAT, for our types in tiles and in rows, and for other types.

    python scripts/bench_mul_mat.py [--types tq2_0 ...] [--tokens 1 256] [--rows 4096] [--length 4096] [--threads 2]

Everything that the operator does is in the figure: quantizing the activations, making look-up tables, sharing the work
among threads, waiting for the last one. First the results are compared with NumPy's. Samples take turns, so that what
else the machine does hits all of them alike. Matrices of this size stay in the last-level cache.

Gmac/s is 10^9 weights times tokens, per second, of all threads. The int8 limit is of sums in 32 bits: SHERRY looks sums
up instead of multiplying, and may lie above it.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from bench.ggml import Ggml, build_in
from limits import Loops, limits, limits_line, write_figures

from sherry_gguf.errors import SherryError
from sherry_gguf.formats.groups import CODES, GROUP
from sherry_gguf.formats.sherry import BLOCKS, SHERRY

F32 = npt.NDArray[np.float32]

TYPE_F32 = 0
SAMPLE_SECONDS = 0.02
WORST_ERROR = 0.05  # of the largest result: activations have 7 bits and a sign


class InitParams(ctypes.Structure):
    """ggml_init_params of ggml.h."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class Product:
    """weights[rows, length] of a type times activations[tokens, length], as a graph that computes it."""

    def __init__(self, ggml: Ggml, name: str, packed: npt.NDArray[np.uint8], x: F32, tiles: bool, threads: int) -> None:
        self.name, self.ggml, self.rows, self.tokens = name, ggml, len(packed), len(x)
        rows, length = len(packed), x.shape[1]
        type_id = ggml.type_id(name.partition(" ")[0])
        weights_context = self.call("init", InitParams(1 << 20, None, True))
        context = self.call("init", InitParams((64 << 20) + x.nbytes + 4 * rows * len(x), None, False))
        weights = self.call("new_tensor_2d", weights_context, type_id, ctypes.c_int64(length), ctypes.c_int64(rows))
        buffer_type = ggml.cpu.ggml_backend_cpu_sherry_buffer_type if tiles else ggml.base.ggml_backend_cpu_buffer_type
        buffer_type.restype = ctypes.c_void_p
        self.call("backend_alloc_ctx_tensors_from_buft", weights_context, ctypes.c_void_p(buffer_type()))
        size = ctypes.c_size_t(packed.nbytes)
        self.call("backend_tensor_set", weights, ctypes.c_void_p(packed.ctypes.data), ctypes.c_size_t(0), size)
        sizes = ctypes.c_int64(length), ctypes.c_int64(len(x))
        activations = self.call("new_tensor_2d", context, TYPE_F32, *sizes)
        ctypes.memmove(self.call("get_data", activations), x.ctypes.data, x.nbytes)
        self.result_tensor = self.call("mul_mat", context, weights, activations)
        self.graph = self.call("new_graph", context)
        self.call("build_forward_expand", self.graph, self.result_tensor)
        ggml.cpu.ggml_backend_cpu_init.restype = ctypes.c_void_p
        self.backend = ctypes.c_void_p(ggml.cpu.ggml_backend_cpu_init())
        ggml.cpu.ggml_backend_cpu_set_n_threads(self.backend, threads)
        self.macs = rows * length * len(x)

    def call(self, function_name: str, *arguments: Any) -> Any:
        function = getattr(self.ggml.base, f"ggml_{function_name}")
        function.restype = ctypes.c_void_p
        return ctypes.c_void_p(function(*arguments))

    def seconds(self, repeat: int) -> float:
        start = time.perf_counter()
        for _ in range(repeat):
            if self.ggml.base.ggml_backend_graph_compute(self.backend, self.graph) != 0:
                raise SherryError(f"{self.name}: ggml could not compute the product")
        return time.perf_counter() - start

    def result(self) -> F32:
        data = ctypes.cast(self.call("get_data", self.result_tensor), ctypes.POINTER(ctypes.c_float))
        result: F32 = np.ctypeslib.as_array(data, (self.tokens, self.rows)).copy()
        return result


def products(ggml: Ggml, types: list[str], rows: int, length: int, tokens: int, threads: int) -> list[Product]:
    """Our types in tiles and in rows, compared with NumPy's product of their weights, and the other types."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, CODES, (rows, length // GROUP), dtype=np.uint8)
    blocks = BLOCKS.pack(codes, rng.uniform(0.01, 0.03, (rows, length // SHERRY.block)).astype(np.float32))
    weights = SHERRY.dequantize(blocks)
    x = rng.standard_normal((tokens, length)).astype(np.float32)
    ours = {"sherry": blocks}
    ours |= {name: ggml.quantize(ggml.type_id(name), weights) for name in ("sherry_g32", "sherry_2p", "stq1_0")}
    out = []
    for name, packed in ours.items():
        expected = x @ dequantize(ggml, name, packed, length).T
        for place in ("tiles", "rows"):
            product = Product(ggml, f"{name} in {place}", packed, x, place == "tiles", threads)
            product.seconds(1)
            error = np.abs(product.result() - expected).max() / np.abs(expected).max()
            if error > WORST_ERROR:
                raise SherryError(f"{product.name}: results are {error:.0%} off")
            out.append(product)
    for name in types:
        out.append(Product(ggml, name, ggml.quantize(ggml.type_id(name), weights), x, False, threads))
        out[-1].seconds(1)
    return out


def dequantize(ggml: Ggml, name: str, packed: npt.NDArray[np.uint8], length: int) -> F32:
    weights = np.empty((len(packed), length), np.float32)
    pointers = ctypes.c_void_p(packed.ctypes.data), ctypes.c_void_p(weights.ctypes.data)
    getattr(ggml.base, f"dequantize_row_{name}")(*pointers, ctypes.c_int64(weights.size))
    return weights


def measure(jobs: list[Product], samples: int) -> list[dict[str, Any]]:
    repeats = [max(1, int(SAMPLE_SECONDS / job.seconds(1))) for job in jobs]
    rates: list[list[float]] = [[] for _ in jobs]
    for _ in range(samples):
        for job, repeat, rate in zip(jobs, repeats, rates, strict=True):
            rate.append(repeat * job.macs / job.seconds(repeat) / 1e9)
    return [
        {"kernel": job.name, "tokens": job.tokens, "gmac_s": statistics.median(rate), "gmac_s_best": max(rate)}
        for job, rate in zip(jobs, rates, strict=True)
    ]


def print_results(results: list[dict[str, Any]], measured: dict[str, Any]) -> None:
    print(limits_line(measured))
    for tokens in dict.fromkeys(result["tokens"] for result in results):
        print(f"\n{f'tokens: {tokens}':16} {'Gmac/s':>9} {'best':>8} {'of int8':>8}")
        for result in results:
            if result["tokens"] == tokens:
                share = result["gmac_s"] / measured["int8_gmac_s"] / measured["threads"]
                print(f"{result['kernel']:16} {result['gmac_s']:9.1f} {result['gmac_s_best']:8.1f} {share:8.0%}")


def main() -> int:
    description, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--types", nargs="*", default=["tq2_0", "q8_0"], metavar="TYPE", help="others (tq2_0 q8_0)")
    parser.add_argument("--rows", type=int, default=4096, help="of the matrix (4096)")
    parser.add_argument("--length", type=int, default=4096, help="weights in a row, a multiple of 256 (4096)")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 256], help="(1, 4 and 256)")
    parser.add_argument("--threads", type=int, default=1, help="(1)")
    parser.add_argument("--samples", type=int, default=20, help="of each product (20)")
    parser.add_argument("--build", type=Path, metavar="DIR", help="a build of your own: DIR/bin holds its libraries")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    arguments = parser.parse_args()
    if arguments.length <= 0 or arguments.length % 256:
        parser.error("--length is a positive multiple of 256")
    if min(arguments.rows, arguments.samples, arguments.threads, *arguments.tokens) <= 0:
        parser.error("--rows, --samples, --threads and --tokens are positive")

    try:
        ggml, loops = Ggml(build_in(arguments.build)), Loops(arguments.threads)
        shape = arguments.rows, arguments.length
        measured = limits(loops)
        results = []
        for tokens in arguments.tokens:
            results += measure(products(ggml, arguments.types, *shape, tokens, arguments.threads), arguments.samples)
    except SherryError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print_results(results, measured)
    if arguments.json:
        write_figures(arguments.json, loops, measured, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
