#!/usr/bin/env python3
"""Damage GGUF files at random, and see that ggml refuses each or reads the weights that the Python reader reads.

    python scripts/fuzz_native.py [--seed 1] [--minutes 20]
    python scripts/fuzz_native.py --seed 1 --number 1234 --keep DIR

Files of SHERRY, SHERRY_G32, SHERRY_2P and STQ1_0 tensors go through the patched gguf.cpp, the validation of blocks, the
dequantizers, and a matrix product from rows and from tiles (tests/native/mutants.cpp), all compiled with the address
and the undefined-behaviour sanitizer. The build takes a minute and is kept.

What counts as a finding: whatever ends the program, products that differ between rows and tiles or are not the sums,
weights that are not those of sherry_gguf.load_tensors, ten seconds for one mutant. A mutant is drawn from the seed and
its number, so that a finding comes back with both, and --keep has its file.
"""

from __future__ import annotations

import argparse
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice, takewhile
from pathlib import Path
from random import Random
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from mutants import gguf_mutant

from sherry_gguf import llama_cpp
from sherry_gguf.api import load_tensors
from sherry_gguf.errors import SherryError
from sherry_gguf.formats.table import named

SOURCE = Path(__file__).parents[1] / "tests/native/mutants.cpp"
TYPES = [found for name in ("SHERRY", "SHERRY_G32", "SHERRY_2P", "STQ1_0") if (found := named(name))]
ROWS = (1, 2, 31, 32, 33, 64, 65)  # a tile has 32
BATCH = 500  # mutants for one process
TOLD = 12  # lines of a sanitizer's report

# Threads of ggml's own; none of upstream's kernels for types that are not ours, which take long to compile
DEFINES = ("GGML_NATIVE=OFF", "GGML_OPENMP=OFF", "GGML_LLAMAFILE=OFF", "GGML_CPU_REPACK=OFF")
SANITIZERS = "-fsanitize=address,undefined"
# enum: gguf.cpp puts the numbers of types into enums before it refuses them (docs/fuzzing.md, faults of upstream)
FLAGS = ("-O1", "-g1", SANITIZERS, "-fno-sanitize-recover=all", "-fno-sanitize=enum")


def compiled(folder: Path, flags: Sequence[str] = (), link: Sequence[str] = ()) -> Path:
    """The program, in that folder, and the libraries that it is linked with, in the cache. CC and CXX count.

    flags: more of them for all that is compiled; link: for the program alone.
    """
    options = [f"CMAKE_{language}_FLAGS_RELEASE={' '.join([*FLAGS, *flags])}" for language in ("C", "CXX")]
    build = llama_cpp.build(["ggml-cpu"], defines=[*DEFINES, f"CMAKE_SHARED_LINKER_FLAGS={SANITIZERS}", *options])
    program = folder / "mutants"
    includes = [f"-I{build.source / 'ggml' / name}" for name in ("include", "src")]
    libraries = [f"-L{build.bin_dir}", f"-Wl,-rpath,{build.bin_dir}", "-lggml-cpu", "-lggml-base"]
    compiler = [*os.environ.get("CXX", "c++").split(), "-std=c++17", "-Wall", "-Wextra"]
    command = [*compiler, *FLAGS, *flags, *link, *includes, str(SOURCE), *libraries, "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SherryError(f"{SOURCE.name} cannot be compiled: {done.stderr}")
    return program


@dataclass
class Told:
    """What ggml made of a file: whether it read it; of each tensor its type, whether it is valid, and float32[n]; and
    why the program ended on it, if it did."""

    read: bool = False
    tensors: list[tuple[str, bool, npt.NDArray[np.float32]]] = field(default_factory=list)
    ended: str | None = None


def outcomes(program: Path, files: Sequence[bytes], folder: Path) -> Iterator[Told]:
    """Of each file what ggml made of it; a program that ends on one is started again with those that follow."""
    at = 0
    while at < len(files):
        (folder / "in").write_bytes(b"".join(struct.pack("<Q", len(file)) + file for file in files[at:]))
        # no gdb to show where ggml aborts: the sanitizers do, and gdb takes seconds
        environment = {**os.environ, "GGML_NO_BACKTRACE": "1", "ASAN_OPTIONS": "allocator_may_return_null=1"}
        with (folder / "in").open("rb") as stdin, (folder / "out").open("w+b") as stdout:
            done = subprocess.run([program], stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, env=environment)
            stdout.seek(0)
            told = list(_parsed(stdout))
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            told = told or [Told()]
            told[-1].ended = " | ".join([f"status {done.returncode}", *lines[:TOLD]])
        yield from told
        at += len(told)


def _parsed(stdout: BinaryIO) -> Iterator[Told]:
    told: Told | None = None
    for line in iter(stdout.readline, b""):
        words = line.decode().split()
        if words[0] == "tensor" and told is not None:
            values = stdout.read(4 * int(words[4]))
            told.tensors.append((words[2], words[3] == "1", np.frombuffer(values[: len(values) // 4 * 4], np.float32)))
        elif words[0] in ("read", "refused") and told is not None:
            told.read = words[0] == "read"
        else:
            if told is not None:
                yield told
            told = Told()
    if told is not None:
        yield told


def against_python(path: Path, told: Told, counts: Counter[str]) -> str | None:
    """What is wrong about what ggml read: None if the Python reader reads the same, or one of both refuses."""
    try:
        tensors: Any = load_tensors(path)
    except SherryError:
        counts["files that ggml alone reads" if told.read else "files that both refuse"] += 1
        return None
    counts["files that both read" if told.read else "files that Python alone reads"] += 1
    for name, (type_name, valid, values) in zip(tensors, told.tensors, strict=False):
        try:
            expected = np.ravel(tensors[name]).astype(np.float32)
        except SherryError:  # of what ends amid its padding, or a float's data long before the end, ggml reads the same
            counts["tensors that ggml alone reads" if valid else "tensors that both refuse"] += 1
            continue
        if values.size == 0 and expected.size:  # integers, which ggml does not dequantize
            continue
        counts[f"tensors that both read, {type_name}" if valid else "tensors that Python alone reads"] += 1
        if not np.array_equal(values, expected, equal_nan=True):
            return f"{name}, {type_name}: other weights than the Python reader's"
    return None


def drawn(seed: int, number: int) -> bytes:
    """A mutant; in a fourth of them bytes of blocks change too, so that scales are negative, infinite or no numbers."""
    draw = Random(f"native {seed} {number}")
    file = bytearray(gguf_mutant(draw, TYPES, ROWS))
    if file and draw.random() < 0.25:
        for _ in range(draw.randint(1, 30)):
            file[draw.randrange(len(file) // 2, len(file))] = draw.choice([0x7C, 0x7F, 0xFC, 0xFF])
    return bytes(file)


def fuzz(program: Path, seed: int, numbers: Iterator[int], folder: Path, counts: Counter[str]) -> Iterator[str]:
    """A line for each finding; counts gets the number of mutants, and what became of them."""
    path = folder / "mutant.gguf"
    while batch := list(islice(numbers, BATCH)):
        files = [drawn(seed, number) for number in batch]
        for number, file, told in zip(batch, files, outcomes(program, files, folder), strict=True):
            counts["mutants"] += 1
            path.write_bytes(file)
            try:
                wrong = told.ended or against_python(path, told, counts)
            except Exception as error:  # that is no refusal: a finding as well
                wrong = f"the Python reader: {type(error).__name__}: {error}"
            if wrong:
                yield f"--seed {seed} --number {number}: {wrong}"


def main() -> int:
    description, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="(1)")
    parser.add_argument("--minutes", type=float, default=1, metavar="N", help="(1)")
    parser.add_argument("--number", type=int, metavar="N", help="this mutant alone")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave the last mutant's file there")
    arguments = parser.parse_args()
    if arguments.keep:
        arguments.keep.mkdir(parents=True, exist_ok=True)

    found = 0
    with tempfile.TemporaryDirectory() as scratch:
        try:
            program = compiled(Path(scratch))
        except SherryError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        end = time.monotonic() + 60 * arguments.minutes
        numbers = (
            takewhile(lambda _: time.monotonic() < end, count())
            if arguments.number is None
            else iter([arguments.number])
        )
        counts: Counter[str] = Counter()
        for finding in fuzz(program, arguments.seed, numbers, arguments.keep or Path(scratch), counts):
            found += 1
            print(finding, flush=True)
        mutants = counts.pop("mutants", 0)
        told = ", ".join(f"{what} {times}" for what, times in sorted(counts.items()))
        print(f"{mutants} mutants with seed {arguments.seed}: {told}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
