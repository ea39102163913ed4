#!/usr/bin/env python3
"""Instructions that the ARM kernels execute for 256 weights, beside those of upstream's TQ2_0. Needs no ARM machine.

    python scripts/count_arm.py [--json]

The kernels are compiled with aarch64-linux-gnu-gcc -O3 and run in qemu-aarch64, which logs every instruction; what one
more call of a kernel executes is divided by what it multiplies (Debian: gcc-aarch64-linux-gnu, qemu-user). The figures
are exact up to a few instructions of the start of a program. They are no times: cores differ in how many instructions
they do at once.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from sherry_gguf import llama_cpp
from sherry_gguf.errors import SherryError

COMPILER = "aarch64-linux-gnu-gcc"
EMULATOR = "qemu-aarch64"
MAIN = Path(__file__).with_suffix(".c")

FLAGS = {"neon": "-march=armv8-a", "dotprod": "-march=armv8.2-a+dotprod", "i8mm": "-march=armv8.6-a+i8mm"}

N = 4096  # weights of a row, as in count_arm.c
TILE_ROWS = 32

# what a call multiplies or prepares: 256 weights x token, 256 activations
UNITS = {
    "tq2_0": N / 256,
    "row": N / 256,
    "stq1_0": N / 256,
    **{f"tile{tokens}": N / 256 * TILE_ROWS * tokens for tokens in (1, 2, 4)},
    "quantize": N / 256,
    "tables": N / 256,
}

TITLES = {
    "tq2_0": "TQ2_0, row by row (upstream)",
    "row": "SHERRY, row by row",
    "stq1_0": "STQ1_0, row by row",
    **{f"tile{tokens}": f"SHERRY, tiles, {tokens} token{'s'[: tokens > 1]}" for tokens in (1, 2, 4)},
    "quantize": "256 activations to Q8_SHERRY",
    "tables": "256 activations to tables",
}


def compile_program(source: Path, folder: Path, flags: str) -> Path:
    """The counting program for one set of instructions, from the patched tree ``source``."""
    ggml = source / "ggml"
    cpu = ggml / "src/ggml-cpu"
    types = [ggml / "src" / name for name in ("ggml-sherry.c", "ggml-sherry-g32.c", "ggml-sherry-2p.c", "ggml-stq1.c")]
    sources = [MAIN, cpu / "arch/arm/quants.c", *types, *sorted((cpu / "sherry").glob("*.c"))]
    includes = [f"-I{path}" for path in (ggml / "include", ggml / "src", cpu)]
    # most of what upstream's file needs is not linked, as nothing calls it
    options = ["-std=c11", "-D_GNU_SOURCE", "-O3", "-DNDEBUG", "-static", flags]
    options += ["-ffunction-sections", "-Wl,--gc-sections"]
    program = folder / "count_arm"
    command = [COMPILER, *options, *includes, *sources, "-o", program, "-lm"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise SherryError(f"{COMPILER} fails:\n{done.stderr}")
    return program


def executed(program: Path, kernel: str, calls: int) -> int:
    """Instructions of one run: the lines of a log with one instruction in each."""
    options = subprocess.run([EMULATOR, "-help"], capture_output=True, text=True).stdout
    single = "-one-insn-per-tb" if "-one-insn-per-tb" in options else "-singlestep"
    command = [EMULATOR, "-cpu", "max", single, "-d", "exec,nochain", str(program), kernel, str(calls)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        count = sum(line.startswith(b"Trace ") for line in process.stderr)
    if process.returncode:
        raise SherryError(f"{EMULATOR} ends with {process.returncode} for kernel {kernel}")
    return count


def count(source: Path) -> dict[str, dict[str, float]]:
    """Instructions of each kernel, compiled for each set of instructions, for one unit."""
    for needed in (COMPILER, EMULATOR):
        if shutil.which(needed) is None:
            raise SherryError(f"there is no {needed} (Debian: gcc-aarch64-linux-gnu, qemu-user)")
    table: dict[str, dict[str, float]] = {kernel: {} for kernel in UNITS}
    with tempfile.TemporaryDirectory() as folder:
        for name, flags in FLAGS.items():
            program = compile_program(source, Path(folder), flags)
            for kernel, units in UNITS.items():
                table[kernel][name] = (executed(program, kernel, 2) - executed(program, kernel, 1)) / units
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--source", type=Path, help="a patched source tree (default: that of `sherry-gguf build`)")
    args = parser.parse_args()
    try:
        table = count(args.source or llama_cpp.build().source)
    except SherryError as error:
        sys.exit(f"error: {error}")
    if args.json:
        print(json.dumps(table))
        return
    print("aarch64 instructions for 256 weights x token".ljust(46) + "".join(name.rjust(9) for name in FLAGS))
    for kernel, counts in table.items():
        print(TITLES[kernel].ljust(46) + "".join(f"{counts[name]:9.1f}" for name in FLAGS))


if __name__ == "__main__":
    main()
