#!/usr/bin/env python3
"""How fast ik_llama.cpp and bitnet.cpp run their ternary types, beside this project's: tokens per second.

    python scripts/bench_peers.py --ik DIR --bitnet DIR [--shape 1b] [--tests pp512,tg128] [--threads N] [--rounds 5]

DIR is a build of yours: DIR/bin/llama-bench and DIR/bin/llama-quantize. A peer that is not given is left out. The page
bench_peers.md tells what is compared and what a build needs.

Each peer's own llama-quantize makes its file from one model of random weights, whose token embeddings and output matrix
stay as they are in all files. Then the models take turns, round after round, in the llama-bench of each.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.flags import add_flags, attempt, parse, parse_types, require_output_type
from bench.ggml import Ggml, build_in
from bench.models import OURS, Model, folder_of_models, write_models
from bench.running import Runtime, Test, find_programs, in_turns, parse_tests, run
from bench.shapes import SHAPES
from bench.table import print_results, summarize
from limits import Loops, dram_gb_s, limits, limits_line, machine, write_figures

from sherry_gguf import llama_cpp
from sherry_gguf.errors import SherryError

REFERENCE = "SHERRY"
SOURCE = "F16"  # the type that peers quantize from
SOURCE_BITS = 16
NO_PAIRS = ("-pg", "0,0")  # prompts with text behind them, which some versions of llama-bench run unasked


@dataclass(frozen=True)
class Peer:
    """A fork of llama.cpp.

    flag           that gives its build
    type           its fastest one for ternary weights, as its llama-quantize names it
    threads        of its llama-quantize: bitnet.cpp's has one scale for a matrix, and finds it in one thread only
    options        of its llama-bench
    """

    name: str
    flag: str
    type: str
    threads: int
    options: tuple[str, ...]


PEERS = (
    Peer("ik_llama.cpp", "ik", "IQ2_BN", 2, ("-rtr", "1", *NO_PAIRS)),  # repacked at load, as SHERRY is
    Peer("bitnet.cpp", "bitnet", "I2_S", 1, NO_PAIRS),
)


def quantized(source: Model, peer: Peer, type_name: str, program: Path, output: str) -> Model:
    """The source's weights in the peer's type, by its own program. A file that is there already is kept."""
    path = source.path.with_name(f"{source.shape}-{peer.flag}-{type_name}-{output}.gguf")
    if not path.exists():
        print(f"writing {path.name}", file=sys.stderr)
        partial = path.with_suffix(".partial")
        heads = ["--token-embedding-type", output.lower(), "--output-tensor-type", output.lower()]
        run([str(program), *heads, str(source.path), str(partial), type_name, str(peer.threads)])
        partial.replace(path)
    saved = source.path.stat().st_size - path.stat().st_size  # all of it in the linear layers
    return replace(
        source,
        path=path,
        type=type_name,
        bits=SOURCE_BITS - 8 * saved / source.products,
        read_bytes=source.read_bytes - saved,
        runtime=peer.name,
    )


def given(arguments: argparse.Namespace) -> Iterator[tuple[Peer, Path, str]]:
    """Each peer whose build is given, with its build and the type to take."""
    for peer in PEERS:
        directory = getattr(arguments, peer.flag)
        if directory is None:
            print(f"{peer.name} is left out: --{peer.flag} DIR names a build of it", file=sys.stderr)
        else:
            yield peer, directory, getattr(arguments, f"{peer.flag}_type")


def parse_own_tests(text: str) -> list[Test]:
    tests = parse_tests(text)
    if any(test.kind == "b" for test in tests):
        raise SherryError("--tests: only ppN and tgN, which the llama-bench of each has")
    return tests


def row_name(result: dict[str, Any]) -> str:
    return f"{result['runtime']} {result['type']}"


def bench(arguments: argparse.Namespace) -> None:
    types, tests = parse_types(arguments.types), parse_own_tests(arguments.tests)
    output = arguments.output_tensor_type
    require_output_type(output)
    peers = list(given(arguments))
    programs = {
        peer.name: find_programs(build_in(directory), {"llama-bench", "llama-quantize"}) for peer, directory, _ in peers
    }
    build = build_in(arguments.build)
    runtimes = {OURS: Runtime(find_programs(build, {"llama-bench"}))}
    runtimes |= {peer.name: Runtime(programs[peer.name], peer.options) for peer, _, _ in peers}
    llama_cpp.use_pinned_gguf()
    import gguf

    loops = Loops(arguments.threads)
    with folder_of_models(arguments.keep) as folder:
        models = write_models(gguf, Ggml(build), arguments.shape, types, output, folder)
        if peers:
            (source,) = write_models(gguf, Ggml(build), arguments.shape, [SOURCE], output, folder)
            models += [
                quantized(source, peer, type_name, programs[peer.name]["llama-quantize"], output)
                for peer, _, type_name in peers
            ]
        measured = limits(loops)
        rates = in_turns(runtimes, models, tests, arguments.threads, arguments.rounds)
        measured["dram_gb_s"] = max(measured["dram_gb_s"], dram_gb_s(loops))  # the machine may have been busy before

    results = summarize(models, tests, rates, measured, REFERENCE)
    what = f"{arguments.shape}: output {output}, {SHAPES[arguments.shape].vocabulary} tokens"
    if arguments.json:
        settings = {"rounds": arguments.rounds, "what": what}
        write_figures(arguments.json, loops, measured, results, settings=settings)
    about = machine(loops)
    print(f"{about['cpu']}, {about['cpus']} processors\n{limits_line(measured)}")
    print(f"{what}; threads: {arguments.threads}, median of rounds: {arguments.rounds}")
    print_results(results, row_name, REFERENCE)


def main() -> int:
    description, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for peer in PEERS:
        parser.add_argument(f"--{peer.flag}", type=Path, metavar="DIR", help=f"a build of {peer.name}")
        parser.add_argument(
            f"--{peer.flag}-type",
            default=peer.type,
            metavar="TYPE",
            help=f"as its llama-quantize names it ({peer.type})",
        )
    add_flags(parser, types="SHERRY,TQ2_0", tests="pp512,tg128")
    return attempt(bench, parse(parser))


if __name__ == "__main__":
    sys.exit(main())
