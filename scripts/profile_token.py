#!/usr/bin/env python3
"""Where the time of one generated token goes: milliseconds in matrix products, tables, waiting and the rest.

    python scripts/profile_token.py [--shape 1b] [--types SHERRY,TQ2_0] [--threads 2,4] [--tokens 128] [--keep DIR]

Needs perf of Linux (Debian: linux-perf), which samples what each thread executes, by a clock that virtual machines
have, too. llama-bench generates N tokens and 2N tokens, and the difference is taken: loading and rearranging weights
is the same in both and drops out. Names of functions decide what a sample belongs to.

products   multiplying the linear layers: kernels of tiles and rows, and upstream's dot product of the type
tables     activations to 8 bits, and the tables of their sums; for other types only the 8 bits
head       the output matrix (Q8_0 and the like)
attention  scores, softmax, values
waiting    for the other threads, at barriers
rest       norms, activation functions, adding, copying, the graph, the system
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from bench.flags import add_model_flags, attempt, cpus, parse_types, require_output_type
from bench.ggml import Ggml, build_in
from bench.models import Model, folder_of_models, write_models
from bench.running import find_programs, run
from limits import Loops, machine

from sherry_gguf import llama_cpp
from sherry_gguf.errors import SherryError

HERTZ = 1999  # no multiple of what else the system does by the clock
PARTS = ("products", "tables", "head", "attention", "waiting", "rest")

_OURS = re.compile(r"^(mul_(g32_)?(avx|neon|generic)|pack_|ggml::cpu::sherry)")
_TABLES = re.compile(r"^(tables_|quantize_(row|for)_|ggml_sherry_tables)")
_ATTENTION = re.compile(r"flash_attn|soft_max|vec_dot_f(16|32)|__expf|ggml_cpu_fp\d+_to|rope")


def part_of(library: str, function: str, linear: str, head: str) -> str:
    """What a sample belongs to. linear, head: the types of the linear layers and of the output matrix, lower case."""
    if library.startswith("libgomp") or "barrier" in function or function == "ggml_graph_compute_thread":
        return "waiting"
    if _TABLES.match(function):
        return "tables"
    if _ATTENTION.search(function):
        return "attention"
    if head != linear and re.search(rf"(vec_dot|gemv|gemm)(_|<block_){head}", function):
        return "head"
    return "products" if _OURS.match(function) or re.search("vec_dot|gemv|gemm", function) else "rest"


def samples(program: Path, model: Model, threads: int, tokens: int, head: str, folder: Path) -> Counter[str]:
    """Of all threads together, while a model is loaded and generates."""
    record = folder / "perf.data"
    generate = [str(program), "-m", str(model.path), "-t", str(threads), "-p", "0", "-n", str(tokens), "-r", "1"]
    run(["perf", "record", "-q", "-F", str(HERTZ), "-e", "cpu-clock", "-o", str(record), "--", *generate, "-ngl", "0"])
    text = run(["perf", "report", "-q", "-i", str(record), "--stdio", "-F", "sample,dso,sym", "-t", ";"])
    counts: Counter[str] = Counter()
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(";", 2)]
        if len(fields) == 3 and fields[0].isdigit():
            function = re.sub(r"^\[.\] ", "", fields[2]).split(".")[0]
            counts[part_of(fields[1], function, model.type.lower(), head.lower())] += int(fields[0])
    return counts


def milliseconds(more: Counter[str], less: Counter[str], threads: int, tokens: int) -> dict[str, float]:
    """Of each part for one token: two counts of samples that lie `tokens` tokens apart."""
    return {part: (more[part] - less[part]) / HERTZ / threads / tokens * 1000 for part in PARTS}


def profile(arguments: argparse.Namespace) -> None:
    types = parse_types(arguments.types)
    head = arguments.output_tensor_type
    require_output_type(head)
    threads = [int(count) for count in arguments.threads.split(",") if count.isdigit() and int(count) > 0]
    if not threads or arguments.tokens <= 0:
        raise SherryError("--threads are numbers from 1, as in 2,4, and --tokens is positive")
    if shutil.which("perf") is None:
        raise SherryError("there is no perf: Debian has it in linux-perf, other systems in linux-tools")
    build = build_in(arguments.build)
    program = find_programs(build, {"llama-bench"})["llama-bench"]
    llama_cpp.use_pinned_gguf()
    import gguf

    with ExitStack() as stack:
        folder = stack.enter_context(folder_of_models(arguments.keep))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        models = write_models(gguf, Ggml(build), arguments.shape, types, head, folder)
        about = machine(Loops(1))
        print(f"{about['cpu']}, {about['cpus']} processors")
        print(f"{arguments.shape}, output {head}: milliseconds of a token, tokens: {arguments.tokens}\n")
        print(f"{'type':10} {'threads':>7} " + " ".join(f"{part:>9}" for part in (*PARTS, "together")))
        for model in models:
            for count in threads:
                once, twice = (
                    samples(program, model, count, turns * arguments.tokens, head, scratch) for turns in (1, 2)
                )
                times = milliseconds(twice, once, count, arguments.tokens)
                cells = [*times.values(), sum(times.values())]
                print(f"{model.type:10} {count:7} " + " ".join(f"{cell:9.2f}" for cell in cells))


def main() -> int:
    description, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_flags(parser, types="SHERRY,TQ2_0")
    parser.add_argument("--threads", default=str(cpus()), metavar="N,..", help=f"(all: {cpus()})")
    parser.add_argument("--tokens", type=int, default=128, metavar="N", help="(128)")
    return attempt(profile, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
