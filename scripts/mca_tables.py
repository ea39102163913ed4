#!/usr/bin/env python3
"""What LLVM's models of processors say of the x86 kernels: weights a cycle, and which ports limit them. Times nothing.

    python scripts/mca_tables.py [--json] [--cpus icelake-server ...]

Each kernel's public function is compiled for one case, with everything inlined and unrolled but the loop over blocks,
and llvm-mca runs that loop (Debian: llvm-19). So a design can be judged without the machine. It is a model: caches,
branches and the clock are not in it, and llvm-mca lets Ice Lake's port 1 do 512-bit operations that the processor
itself cannot do there (read Sapphire Rapids for it).

Cycles are for 32 rows x 4 weights and a token, 128 weights x token.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from sherry_gguf import llama_cpp
from sherry_gguf.errors import SherryError

ANALYZERS = "llvm-mca-19", "llvm-mca"

AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mbmi2"]
AVX512 = [*AVX2, *(f"-mavx512{part}" for part in ("f", "cd", "bw", "dq", "vl", "vnni"))]
CPUS = ("haswell", "znver3", "alderlake", "znver4", "icelake-server", "sapphirerapids")
WITH_AVX512 = CPUS[3:]

# of what is unrolled: any loop with a constant number of turns
UNROLL = ["--param", "max-completely-peeled-insns=1000000", "--param", "max-completely-peel-times=64"]
ITERATIONS = 20

TILE = """
__attribute__((flatten)) void sherry_mca(size_t stride, const void * tiles, int n_blocks, const void * const * tables,
                                         const float * const * d, float * const * dst) {{
    ggml_sherry_tile_{isa}.mul({tiles}, stride, tiles, n_blocks, 1, {tokens}, tables, d, dst, false, false);
}}
"""
ROW = """
__attribute__((flatten)) void sherry_mca(int n_blocks, float * s, const void * x, const void * y) {{
    ggml_sherry_row_{isa}.sherry.vec_dot(n_blocks*QK_SHERRY, s, 0, x, 0, y, 0, 1);
}}
"""


@dataclass(frozen=True)
class Case:
    """One function of a kernel and the processors that have its instructions."""

    kernel: str
    file: str
    code: str
    flags: list[str]
    cpus: tuple[str, ...]
    units: int  # of 128 weights x token, in a turn of the loop over blocks


def tile_case(isa: str, flags: list[str], cpus: tuple[str, ...], tiles: int, tokens: int) -> Case:
    code = TILE.format(isa=isa, tiles=tiles, tokens=tokens)
    name = f"tile-{isa}, {tokens} token{'s'[: tokens > 1]}"
    return Case(name, f"tile-{isa}.c", code, flags, cpus, 32 * tiles * tokens)


CASES = [
    *(tile_case("avx2", AVX2, CPUS, 1, tokens) for tokens in (1, 2, 4)),
    *(tile_case("avx512", AVX512, WITH_AVX512, 4, tokens) for tokens in (1, 2, 4)),
    *(tile_case("avx512vbmi", [*AVX512, "-mavx512vbmi"], WITH_AVX512, 4, tokens) for tokens in (1, 2, 4)),
    Case("row-avx2", "row-avx2.c", ROW.format(isa="avx2"), AVX2, CPUS, 1),
    Case("row-avx2 with AVX-512 VNNI", "row-avx2.c", ROW.format(isa="avx2"), AVX512, WITH_AVX512, 1),
]


def analyzer() -> str:
    for name in ANALYZERS:
        if shutil.which(name):
            return name
    raise SherryError(f"there is no {' and no '.join(ANALYZERS)} (Debian: llvm-19)")


def output(command: list[str], text: str) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode:
        raise SherryError(f"{command[0]} fails:\n{done.stderr}")
    return done.stdout


def block_loop(case: Case, source: Path) -> str:
    """The instructions of one turn of the loop over blocks, in assembly."""
    ggml = source / "ggml"
    compiler = os.environ.get("CC", "gcc").split()
    if shutil.which(compiler[0]) is None:
        raise SherryError(f"there is no C compiler {compiler[0]}")
    includes = [f"-I{ggml / folder}" for folder in ("include", "src", "src/ggml-cpu")]
    options = ["-std=c11", "-D_GNU_SOURCE", "-O3", "-DNDEBUG", *case.flags, *UNROLL, *includes]
    text = f'#include "sherry/{case.file}"\n{case.code}'
    assembly = output([*compiler, *options, "-x", "c", "-S", "-", "-o", "-"], text)
    return longest_loop(assembly, case.kernel)


def longest_loop(assembly: str, kernel: str) -> str:
    """The longest loop of the function sherry_mca: from a label to the jump back to it, with no jump between them."""
    body = assembly.partition("sherry_mca:\n")[2].partition("\t.size\tsherry_mca")[0].splitlines()
    labels = {line[:-1]: at for at, line in enumerate(body) if re.fullmatch(r"\.L\w+:", line)}
    jumps = {at: match[1] for at, line in enumerate(body) if (match := re.match(r"\tj\w+\t(\.L\w+)$", line))}
    loops = [body[labels[to] + 1 : at + 1] for at, to in jumps.items() if labels.get(to, at) < at]
    if not loops:
        raise SherryError(f"the compiler left no loop over blocks in {kernel}")
    instructions = [line for line in max(loops, key=len) if not line.startswith(("\t.", "."))]
    if sum(line.startswith(("\tj", "\tcall")) for line in instructions) > 1:
        raise SherryError(f"the compiler left jumps in the loop over blocks of {kernel}")
    return "\n".join(instructions) + "\n"


@dataclass(frozen=True)
class Estimate:
    """What llvm-mca says of one kernel on one processor."""

    cycles: float  # for 128 weights x token
    ports: dict[str, float]  # cycles that each is taken for these: the most one limits

    @property
    def weights_a_cycle(self) -> float:
        return 128 / self.cycles

    @property
    def busiest(self) -> str:
        most = sorted(self.ports, key=lambda port: -self.ports[port])[:3]
        return ", ".join(f"{port} {self.ports[port] / self.cycles:.0%}" for port in most)


def estimate(program: str, loop: str, cpu: str, units: int) -> Estimate:
    """Ask llvm-mca for one turn of the loop, which handles so many units of 128 weights x token."""
    command = [program, "-mtriple=x86_64", f"-mcpu={cpu}", f"-iterations={ITERATIONS}", "-instruction-info=0", "--json"]
    report = json.loads(output(command, loop))
    names = report["TargetInfo"]["Resources"]
    (region,) = report["CodeRegions"]
    turn = region["SummaryView"]["TotalCycles"] / region["SummaryView"]["Iterations"]
    pressure: dict[str, float] = {}
    whole = len(region["Instructions"])  # after the instructions comes what all of them use
    for usage in region["ResourcePressureView"]["ResourcePressureInfo"]:
        port = re.search(r"(Port|FP)(\d+)$", names[usage["ResourceIndex"]])  # not dividers, nor AMD's integer units
        if port and usage["InstructionIndex"] == whole:
            pressure[f"{port[1].lower()} {int(port[2])}"] = usage["ResourceUsage"] / units
    return Estimate(turn / units, pressure)


def estimates(program: str, source: Path, cpus: list[str]) -> dict[str, dict[str, Estimate]]:
    """kernel -> processor -> what is said of it there, for processors that have the kernel's instructions."""
    table = {}
    for case in CASES:
        wanted = [cpu for cpu in case.cpus if cpu in cpus]
        loop = block_loop(case, source) if wanted else ""
        table[case.kernel] = {cpu: estimate(program, loop, cpu, case.units) for cpu in wanted}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpus", nargs="+", choices=CPUS, default=list(CPUS), metavar="CPU", help=", ".join(CPUS))
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--source", type=Path, help="a patched source tree (default: that of `sherry-gguf build`)")
    args = parser.parse_args()
    try:
        table = estimates(analyzer(), args.source or llama_cpp.find_source(), args.cpus)
    except SherryError as error:
        sys.exit(f"error: {error}")
    if args.json:
        print(json.dumps({kernel: {cpu: vars(found) for cpu, found in row.items()} for kernel, row in table.items()}))
        return
    for cpu in args.cpus:
        print(f"{cpu:28} {'cycles':>7} {'weights a cycle':>16}   busiest, of all cycles")
        for kernel, row in table.items():
            if cpu in row:
                found = row[cpu]
                print(f"{kernel:28} {found.cycles:7.2f} {found.weights_a_cycle:16.1f}   {found.busiest}")
        print()


if __name__ == "__main__":
    main()
