#!/usr/bin/env python3
"""The rate of each kernel of SHERRY, and of other types' in the same build, beside what the machine can do at most.

    python scripts/bench_kernels.py [--kernels tile-avx2 ...] [--types tq2_0 ...] [--tokens 1 4] [--from-memory]

First it checks: with scales of 1 a kernel gives integers, and they equal the NumPy oracle's (sherry_gguf.formats).
Then it times, in a loop in C, a matrix times a few columns of activations, as ggml's matrix product calls the kernel:
tile-* over tiles of 32 rows with look-up tables made beforehand, row-* and the other types' vec_dot row by row.
tile-amx is tile-avx512vbmi with up to 4 tokens; more are multiplied by AMX, with activations arranged beforehand.
Of STQ1_0 there is one more, row-stq1_0-by-block: the public way (stq1_by_block.c). Tiles of it are those of SHERRY.
(ggml has kernels for tiles of other types too; they are not callable one by one: bench_llama.py has them.)

Every thread has a matrix of its own. The default, 128 rows of 4096, stays in the second-level cache: it is the kernel
that is timed, not the memory. `--from-memory` takes matrices of more than 256 MiB each, as generating text does. The
kernels take turns, sample by sample, so that what else the machine does hits all of them.

Gweights/s is 10^9 weights times tokens, per second, of all threads. The int8 limit is of sums in 32 bits: a kernel that
adds up in fewer bits, or looks up instead of multiplying, may lie above it.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from bench.ggml import Ggml, build_in
from kernel_tables import row_kernels, tile_kernels
from limits import Loops, limits, limits_line, write_figures
from stq1_rows import stq1_rows

from sherry_gguf.errors import SherryError
from sherry_gguf.formats import sherry
from sherry_gguf.formats.groups import CODES, GROUP, PATTERNS
from sherry_gguf.formats.sherry import SHERRY

U8 = npt.NDArray[np.uint8]

TILE_ROWS = 32
TILE_BYTES = TILE_ROWS * SHERRY.block_bytes
UNIT = 512  # rows: a sample from memory takes some of these
DISTINCT = 128  # rows: a large matrix repeats them, what they hold does not change the time
SAMPLE_SECONDS = 1e-3
MEMORY_SAMPLE_SECONDS = 2e-2
MEMORY_BYTES = 257 << 20
FEW = 4  # tokens that are multiplied by look-up tables, even if a kernel has a unit for many
STRIP_TOKENS, PANEL_STRIPS = 16, 8  # of that unit
STRIP_BYTES = STRIP_TOKENS * (SHERRY.block + 4)


def aligned(shape: tuple[int, ...], dtype: Any = np.uint8) -> npt.NDArray[Any]:
    """Zeros at an address that is a multiple of 64."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    room = np.zeros(size + 64, dtype=np.uint8)
    start = -room.ctypes.data % 64
    out: npt.NDArray[Any] = room[start : start + size].view(dtype).reshape(shape)
    return out


@dataclass(frozen=True)
class Problem:
    """SHERRY weights and activations with scales of 1, so that results are integers; and the oracle's results."""

    weights: U8  # [DISTINCT, k/128*22]
    activations: U8  # Q8_SHERRY [columns, k/128*136]
    expected: npt.NDArray[np.int64]  # [columns, DISTINCT]
    sums: npt.NDArray[np.int32]  # [columns, DISTINCT, k/128], of each block


def problem(length: int, columns: int) -> Problem:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, CODES, (DISTINCT, length // GROUP), dtype=np.uint8)
    packed = sherry.BLOCKS.pack(codes, np.ones((DISTINCT, length // SHERRY.block), np.float32))
    x = rng.integers(-127, 128, (columns, length // SHERRY.block, SHERRY.block)).astype(np.int8)

    activations = np.zeros(
        (columns, length // SHERRY.block), [("d", "<f4"), ("sum", "<i4"), ("qs", np.int8, SHERRY.block)]
    )
    activations["d"] = 1
    activations["sum"] = x.sum(axis=-1, dtype=np.int32)
    # planes: byte p*32 + g is activation 4*g + p
    activations["qs"] = x.reshape(columns, -1, SHERRY.block // GROUP, GROUP).swapaxes(-1, -2).reshape(x.shape)

    read_back, _ = sherry.BLOCKS.unpack(packed)
    w = PATTERNS[read_back].reshape(DISTINCT, -1, SHERRY.block).astype(np.int32)
    sums = np.stack([(w * column).sum(axis=-1, dtype=np.int32) for column in x.astype(np.int32)])
    return Problem(packed, activations.view(np.uint8), sums.sum(axis=-1, dtype=np.int64), sums)


@dataclass
class Kernel:
    """One kernel at work: ``run(tokens, first, rows, repeat)`` -> seconds, on those rows of each thread's matrix."""

    name: str
    type: str
    bits: float  # of a weight
    rows: int  # of each thread's matrix
    run: Callable[[int, int, int, int], float]
    result: Callable[[int], npt.NDArray[np.float32]]  # of the last run over so many rows and one thread [columns, rows]
    table_seconds: Callable[[], float] | None = None  # look-up tables of one column's block


class Bench:
    def __init__(self, ggml: Ggml, loops: Loops, rows: int, length: int, columns: int, from_memory: bool) -> None:
        self.ggml, self.loops, self.length, self.columns = ggml, loops, length, columns
        self.rows, self.from_memory = rows, from_memory
        self.problem = problem(length, columns)

    def matrix_rows(self, row_bytes: float) -> int:
        """Rows of each thread's matrix."""
        if not self.from_memory:
            return self.rows
        return -(-MEMORY_BYTES // int(row_bytes * UNIT * self.loops.threads)) * UNIT

    def matrices(self, packed: U8, unit_rows: int, rows: int) -> list[npt.NDArray[np.uint8]]:
        """A matrix for each thread: packed uint8[units, bytes] of unit_rows rows each, as often as it takes."""
        units = -(-rows // unit_rows)
        out = []
        for _ in range(self.loops.threads):
            matrix = aligned((units, packed.shape[1]))
            for first in range(0, units, len(packed)):
                matrix[first : first + len(packed)] = packed[: units - first]
            out.append(matrix)
        return out

    def row_kernel(self, name: str, type_name: str, vec_dot: Any, packed: U8, activations: U8) -> Kernel:
        row_bytes, length = packed.shape[1], self.length
        rows = self.matrix_rows(row_bytes)
        weights = self.matrices(packed, 1, rows)
        outputs = [np.zeros((self.columns, rows), np.float32) for _ in weights]
        x = aligned(activations.shape)
        x[:] = activations

        def run(tokens: int, first: int, count: int, repeat: int) -> float:
            parts = [
                (
                    ctypes.cast(vec_dot, ctypes.c_void_p), length, count, ctypes.c_size_t(row_bytes),
                    ctypes.c_void_p(matrix[first:].ctypes.data), tokens, ctypes.c_size_t(x.shape[1]),
                    ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(output.ctypes.data), repeat,
                )
                for matrix, output in zip(weights, outputs, strict=True)
            ]  # fmt: skip
            return self.loops.seconds("multiply_rows", parts)

        def result(count: int) -> npt.NDArray[np.float32]:
            return outputs[0].reshape(-1)[: self.columns * count].reshape(self.columns, count)

        return Kernel(name, type_name, 8 * row_bytes / length, rows, run, result)

    def tile_kernel(self, name: str, kernel: Any) -> Kernel:
        n_blocks, source = self.length // SHERRY.block, self.problem.weights
        packed = aligned((DISTINCT // TILE_ROWS, n_blocks, TILE_BYTES))
        for tile, block in np.ndindex(packed.shape[:2]):
            first = source[tile * TILE_ROWS :, block * SHERRY.block_bytes :].ctypes.data
            kernel.pack(first, n_blocks, packed[tile, block].ctypes.data)
        rows = -(-self.matrix_rows(source.shape[1]) // TILE_ROWS) * TILE_ROWS
        weights = self.matrices(packed.reshape(len(packed), -1), TILE_ROWS, rows)
        outputs = [aligned((self.columns * rows,), np.float32) for _ in weights]
        x = self.problem.activations
        scales = np.ones((self.columns, n_blocks), np.float32)
        tables = {tokens: aligned((tokens, n_blocks, kernel.table_bytes)) for tokens in range(1, self.columns + 1)}

        def make_tables(tokens: int, repeat: int = 1) -> float:
            part = (
                ctypes.cast(kernel.tables, ctypes.c_void_p), n_blocks, tokens, ctypes.c_size_t(x.shape[1] // n_blocks),
                ctypes.c_void_p(x.ctypes.data), ctypes.c_size_t(kernel.table_bytes),
                ctypes.c_void_p(tables[tokens].ctypes.data), repeat,
            )  # fmt: skip
            return self.loops.seconds("make_tables", [part])

        for tokens in tables:
            make_tables(tokens)

        by_strips = {tokens: self.strips(kernel, tokens) for tokens in tables if tokens > FEW and kernel.many}

        def run_many(tokens: int, first: int, count: int, repeat: int) -> float:
            parts = [
                (
                    ctypes.cast(kernel.many.contents.mul, ctypes.c_void_p), n_blocks, count // TILE_ROWS,
                    ctypes.c_size_t(TILE_BYTES), ctypes.c_void_p(matrix[first // TILE_ROWS :].ctypes.data), tokens,
                    ctypes.c_size_t(STRIP_BYTES), ctypes.c_void_p(by_strips[tokens].ctypes.data),
                    ctypes.c_void_p(output.ctypes.data), repeat,
                )
                for matrix, output in zip(weights, outputs, strict=True)
            ]  # fmt: skip
            return self.loops.seconds("multiply_strips", parts)

        def run(tokens: int, first: int, count: int, repeat: int) -> float:
            if tokens in by_strips:
                return run_many(tokens, first, count, repeat)
            parts = [
                (
                    ctypes.cast(kernel.mul, ctypes.c_void_p), kernel.max_tiles, n_blocks, count // TILE_ROWS,
                    ctypes.c_size_t(TILE_BYTES), ctypes.c_void_p(matrix[first // TILE_ROWS :].ctypes.data), tokens,
                    ctypes.c_size_t(kernel.table_bytes), ctypes.c_void_p(tables[tokens].ctypes.data),
                    ctypes.c_void_p(scales.ctypes.data), ctypes.c_void_p(output.ctypes.data), repeat,
                )
                for matrix, output in zip(weights, outputs, strict=True)
            ]  # fmt: skip
            return self.loops.seconds("multiply_tiles", parts)

        def result(count: int) -> npt.NDArray[np.float32]:
            return outputs[0][: self.columns * count].reshape(self.columns, count)

        def table_seconds() -> float:
            repeat = max(1, 4096 // n_blocks)
            return make_tables(1, repeat) / repeat / n_blocks

        return Kernel(name, "sherry", 8 * SHERRY.block_bytes / SHERRY.block, rows, run, result, table_seconds)

    def strips(self, kernel: Any, tokens: int) -> npt.NDArray[np.uint8]:
        """The first tokens' activations in panels of strips, as multiply_strips of loops.c takes them; scales are 1."""
        many, x = kernel.many.contents, self.problem.activations
        n_blocks, x_bytes = self.length // SHERRY.block, x.shape[1] // (self.length // SHERRY.block)
        if not many.allowed():
            raise SherryError("the system does not allow AMX")
        one = np.ones(1, np.float32)
        n_strips = -(-tokens // STRIP_TOKENS)
        out = aligned((n_strips * n_blocks, STRIP_BYTES))
        for strip, block in np.ndindex(n_strips, n_blocks):
            first, panel = strip * STRIP_TOKENS, strip - strip % PANEL_STRIPS
            count = min(STRIP_TOKENS, tokens - first)
            of_tokens = [x[first + token, block * x_bytes :].ctypes.data for token in range(count)]
            pointers = (ctypes.c_void_p * count)(*of_tokens), (ctypes.c_void_p * count)(*[one.ctypes.data] * count)
            in_panel = min(PANEL_STRIPS, n_strips - panel)
            place = out[panel * n_blocks + block * in_panel + strip - panel]
            many.arrange(*pointers, 1, count, place.ctypes.data)
        return out

    def peer(self, name: str) -> Kernel:
        type_id = self.ggml.type_id(name)
        traits = self.ggml.traits(type_id)
        if not traits.vec_dot:
            raise SherryError(f"type {name!r} has no vec_dot")
        rng = np.random.default_rng(0)
        packed = self.ggml.quantize(type_id, rng.standard_normal((DISTINCT, self.length)).astype(np.float32))
        x = rng.standard_normal((self.columns, self.length)).astype(np.float32)
        activations = self.ggml.activations(traits.vec_dot_type, x)
        return self.row_kernel(f"row-{name}", name, traits.vec_dot, packed, activations)

    def check(self, kernel: Kernel) -> None:
        """Raises SherryError unless the kernel's results are the oracle's."""
        rows = min(DISTINCT, kernel.rows)
        kernel.run(self.columns, 0, rows, 1)
        wrong = kernel.result(rows) != self.problem.expected[:, :rows]
        if wrong.any():
            column, row = np.argwhere(wrong)[0]
            raise SherryError(
                f"{kernel.name} is wrong in {np.count_nonzero(wrong)} of {wrong.size} sums, the first in row {row}, "
                f"token {column}: {kernel.result(rows)[column, row]:g} instead of {self.problem.expected[column, row]}"
            )

    def check_integers(self, name: str, kernel: Any) -> None:
        """Raises SherryError unless the integers inside vec_dot are the oracle's, block by block."""
        out = np.empty(self.length // SHERRY.block, dtype=np.int32)
        for column, row in np.ndindex(self.columns, DISTINCT):
            arrays = out, self.problem.weights[row], self.problem.activations[column]
            kernel.sherry.isums(self.length, *(array.ctypes.data for array in arrays))
            if not np.array_equal(out, self.problem.sums[column, row]):
                raise SherryError(f"{name} has wrong integer sums in row {row}, token {column}")

    def kernels(self, wanted: list[str] | None, types: list[str]) -> list[Kernel]:
        """Those of SHERRY, checked, and the other types'."""
        tiles = {f"tile-{isa}": kernel for isa, kernel in tile_kernels(self.ggml.cpu).items()}
        rows = {f"row-{isa}": kernel for isa, kernel in row_kernels(self.ggml.cpu).items()}
        names = [*tiles, *rows] if wanted is None else wanted
        for name in names:
            if name not in tiles and name not in rows:
                raise SherryError(f"this build has no kernel {name!r}: there are {', '.join([*tiles, *rows])}")
        out = []
        for name in names:
            if name in tiles:
                kernel = self.tile_kernel(name, tiles[name])
            else:
                self.check_integers(name, rows[name])
                data = self.problem.weights, self.problem.activations
                kernel = self.row_kernel(name, "sherry", rows[name].sherry.vec_dot, *data)
            self.check(kernel)
            out.append(kernel)
        others = (stq1_rows(self) if name == "stq1_0" else [self.peer(name)] for name in types)
        return out + [kernel for some in others for kernel in some]

    def sampler(self, kernel: Kernel, tokens: int) -> Callable[[], float]:
        """A function that takes one sample: weights times tokens per second."""
        weights = self.loops.threads * self.length * tokens
        if not self.from_memory:
            rows = kernel.rows
            kernel.run(tokens, 0, rows, 1)
            once = kernel.run(tokens, 0, rows, 1)
            repeat = max(1, int(SAMPLE_SECONDS / once))
            return lambda: repeat * rows * weights / kernel.run(tokens, 0, rows, repeat)

        # some rows at a time, on and on through the matrix: a slow kernel need not run through all of it
        kernel.run(tokens, 0, UNIT, 1)
        units = int(MEMORY_SAMPLE_SECONDS / kernel.run(tokens, UNIT, UNIT, 1))
        rows = UNIT * max(1, min(units, kernel.rows // UNIT))
        next_row = 0

        def sample() -> float:
            nonlocal next_row
            first = next_row if next_row + rows <= kernel.rows else 0
            next_row = first + rows
            return rows * weights / kernel.run(tokens, first, rows, 1)

        return sample


def measure(bench: Bench, kernels: list[Kernel], tokens: list[int], samples: int) -> list[dict[str, Any]]:
    """Each kernel with each count of tokens; the median and the best of samples that take turns."""
    jobs = [(kernel, count, bench.sampler(kernel, count)) for count in tokens for kernel in kernels]
    rates: list[list[float]] = [[] for _ in jobs]
    tables: dict[str, list[float]] = {kernel.name: [] for kernel in kernels if kernel.table_seconds}
    for _ in range(samples):
        for rate, (_, _, sample) in zip(rates, jobs, strict=True):
            rate.append(sample())
        for kernel in kernels:
            if kernel.table_seconds:
                tables[kernel.name].append(kernel.table_seconds())

    results = []
    for rate, (kernel, count, _) in zip(rates, jobs, strict=True):
        median = statistics.median(rate)
        result = {
            "kernel": kernel.name,
            "type": kernel.type,
            "tokens": count,
            "bpw": kernel.bits,
            "gweights_s": median / 1e9,
            "gweights_s_best": max(rate) / 1e9,
            "gb_s": median / count * kernel.bits / 8 / 1e9,  # of weights
        }
        if kernel.name in tables:
            result["tables_ns"] = statistics.median(tables[kernel.name]) * 1e9
        results.append(result)
    return results


def print_results(results: list[dict[str, Any]], measured: dict[str, Any]) -> None:
    print(limits_line(measured))
    dram, int8 = measured["dram_gb_s"], measured["int8_gmac_s"] * measured["threads"]
    for tokens in dict.fromkeys(result["tokens"] for result in results):
        print(f"\n{f'tokens: {tokens}':20} {'Gweights/s':>11} {'best':>7} {'of int8':>8} {'GB/s':>7} {'of memory':>10}")
        for result in results:
            if result["tokens"] == tokens:
                rate, best, bytes_rate = result["gweights_s"], result["gweights_s_best"], result["gb_s"]
                tables = f"   tables: {result['tables_ns']:.0f} ns for 128 activations" if "tables_ns" in result else ""
                shares = f"{rate / int8:8.0%} {bytes_rate:7.1f} {bytes_rate / dram:10.0%}"
                print(f"{result['kernel']:20} {rate:11.2f} {best:7.2f} {shares}{tables}")


def main() -> int:
    description, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kernels", nargs="+", metavar="NAME", help="of SHERRY: tile-ISA, row-ISA (default: all)")
    others = ["stq1_0", "tq2_0", "tq1_0", "q4_0", "q8_0"]
    parser.add_argument("--types", nargs="*", default=others, metavar="TYPE", help="other types' vec_dot")
    parser.add_argument("--rows", type=int, default=128, help="of each thread's matrix, a multiple of 32 (128)")
    parser.add_argument("--length", type=int, default=4096, help="weights in a row, a multiple of 256 (4096)")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4], help="columns of activations (1 and 4)")
    parser.add_argument("--threads", type=int, default=1, help="(1)")
    parser.add_argument("--samples", type=int, help="of each kernel (100; 30 from memory)")
    parser.add_argument(
        "--from-memory", action="store_true", help="matrices of more than 256 MiB, one for each kernel, not --rows"
    )
    parser.add_argument("--build", type=Path, metavar="DIR", help="a build of your own: DIR/bin holds its libraries")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    arguments = parser.parse_args()
    samples = arguments.samples if arguments.samples is not None else 30 if arguments.from_memory else 100
    if arguments.length <= 0 or arguments.length % 256 or arguments.rows <= 0 or arguments.rows % TILE_ROWS:
        parser.error("--length is a positive multiple of 256, --rows one of 32")
    if min(samples, arguments.threads, *arguments.tokens) <= 0:
        parser.error("--samples, --threads and --tokens are positive")

    try:
        build = build_in(arguments.build)
        loops = Loops(arguments.threads)
        shape = arguments.rows, arguments.length, max(arguments.tokens)
        bench = Bench(Ggml(build), loops, *shape, arguments.from_memory)
        kernels = bench.kernels(arguments.kernels, arguments.types)
        measured = limits(loops)
        results = measure(bench, kernels, arguments.tokens, samples)
    except SherryError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print_results(results, measured)
    if arguments.json:
        write_figures(arguments.json, loops, measured, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
