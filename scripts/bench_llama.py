#!/usr/bin/env python3
"""How fast llama.cpp runs models of SHERRY and of other types: tokens per second, and the share of what is possible.

    python scripts/bench_llama.py [--shape 1b] [--types SHERRY,TQ2_0] [--tests pp256,tg64] [--threads N] [--rounds 5]
    python scripts/bench_llama.py --model A.gguf --model B.gguf

Without --model it writes models of random weights in the shape of real ones, which differ in nothing but the type of
their linear layers. Token embeddings and output matrix have the type that `sherry-gguf convert` gives them by
default, or --output-tensor-type; the vocabulary is the real one, because the output matrix of a large vocabulary is a
good part of what is read for a token. Speed does not depend on the weights' values. The models are run with llama-
bench, one after the other and round after round (A B C A B C), a process each: what else the machine does hits all of
them. Medians are given.

tests:  ppN  a prompt of N tokens at once
        tgN  N tokens, one by one
        bN   generating in N sequences at once, tokens of all together; needs the program llama-batched-bench

limit:  of tgN and bN, bytes of the weights that a step reads (all but the token embeddings) against the bytes that the
        machine reads from memory; of ppN, products in the linear layers against its peak of int8 products.

busy:   --busy N lets N processes count without end beside every measurement, as on a machine that has other work to do.

GPU:    -ngl N has layers on the GPU, of a build with a backend for it; limits are those of the processor, and
        left out then.

shapes: 0.7b          hidden 1536, ffn 4096, 24 layers, 12 heads, 12 kv heads, head_dim 128,  32000 tokens
        1b            hidden 2048, ffn 8192, 16 layers, 32 heads,  8 kv heads, head_dim 64,  128256 (Llama-3.2-1B)
        3b            hidden 3072, ffn 8192, 28 layers, 24 heads,  8 kv heads, head_dim 128, 128256 (Llama-3.2-3B)
        8b            hidden 4096, ffn 14336, 32 layers, 32 heads, 8 kv heads, head_dim 128, 128256 (Llama-3.1-8B)
        qwen3-1.7b    hidden 2048, ffn 6144, 28 layers, 16 heads,  8 kv heads, head_dim 128, 151936
        hunyuan-1.8b  hidden 2048, ffn 6144, 32 layers, 16 heads,  4 kv heads, head_dim 128, 120818
        tiny          hidden 256,  ffn 512,  2 layers,  4 heads,   2 kv heads, head_dim 64,   32000 (to try this script)
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from operator import itemgetter
from pathlib import Path

from bench.flags import TYPES, add_flags, attempt, parse, parse_types, require_output_type
from bench.ggml import Ggml, build_in
from bench.models import OURS, folder_of_models, read_model, write_models
from bench.running import Runtime, find_programs, in_turns, parse_tests, programs_for
from bench.shapes import SHAPES
from bench.table import load_pyplot, plot, print_results, summarize
from limits import Loops, dram_gb_s, limits, limits_line, machine, write_figures

from sherry_gguf import llama_cpp


def bench(arguments: argparse.Namespace) -> None:
    types, tests = parse_types(arguments.types), parse_tests(arguments.tests)
    require_output_type(arguments.output_tensor_type)
    pyplot = load_pyplot() if arguments.plot else None
    build = build_in(arguments.build)
    runtimes = {OURS: Runtime(find_programs(build, programs_for(tests)), gpu_layers=arguments.n_gpu_layers)}
    llama_cpp.use_pinned_gguf()
    import gguf

    loops = Loops(arguments.threads)
    with ExitStack() as stack:
        if arguments.model:
            models = [read_model(gguf, path) for path in arguments.model]
        else:
            folder = stack.enter_context(folder_of_models(arguments.keep))
            models = write_models(gguf, Ggml(build), arguments.shape, types, arguments.output_tensor_type, folder)

        measured = limits(loops)
        rates = in_turns(runtimes, models, tests, arguments.threads, arguments.rounds, arguments.busy)
        measured["dram_gb_s"] = max(measured["dram_gb_s"], dram_gb_s(loops))  # the machine may have been busy before

    results = summarize(models, tests, rates, None if arguments.n_gpu_layers else measured)
    label = itemgetter("model" if arguments.model else "type")
    vocabulary = SHAPES[arguments.shape].vocabulary
    what = f"{arguments.shape}: output {arguments.output_tensor_type}, {vocabulary} tokens"
    what = "files" if arguments.model else what
    beside = f", busy processes: {arguments.busy}" if arguments.busy else ""
    on_gpu = f", layers on the GPU: {arguments.n_gpu_layers}" if arguments.n_gpu_layers else ""
    title = f"{what}; threads: {arguments.threads}{on_gpu}{beside}, median of rounds: {arguments.rounds}"
    about = machine(loops)
    if arguments.json:  # first: a table is easily lost, and a plot may fail
        settings = {
            "rounds": arguments.rounds,
            "busy": arguments.busy,
            "gpu_layers": arguments.n_gpu_layers,
            "what": what,
        }
        write_figures(arguments.json, loops, measured, results, settings=settings)
    print(f"{about['cpu']}, {about['cpus']} processors\n{limits_line(measured)}\n{title}")
    print_results(results, label)
    if arguments.plot:
        plot(pyplot, results, label, f"{about['cpu']}, {title}", arguments.plot)


def main() -> int:
    description, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_flags(parser, types=",".join(TYPES), tests="pp256,tg64")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="run N processes beside that never wait (0)")
    parser.add_argument("-ngl", "--n-gpu-layers", type=int, default=0, metavar="N", help="layers on the GPU (0)")
    parser.add_argument(
        "--model", type=Path, action="append", metavar="FILE", help="run this file, and no shape; repeat for more"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw them; needs matplotlib")
    arguments = parse(parser)
    if arguments.busy < 0 or arguments.n_gpu_layers < 0:
        parser.error("--busy and --n-gpu-layers are not negative")
    return attempt(bench, arguments)


if __name__ == "__main__":
    sys.exit(main())
