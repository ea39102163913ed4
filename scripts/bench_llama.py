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

shapes: 0.7b          hidden 1536, ffn 4096, 24 layers, 12 heads, 12 kv heads, head_dim 128,  32000 tokens
        1b            hidden 2048, ffn 8192, 16 layers, 32 heads,  8 kv heads, head_dim 64,  128256 (Llama-3.2-1B)
        3b            hidden 3072, ffn 8192, 28 layers, 24 heads,  8 kv heads, head_dim 128, 128256 (Llama-3.2-3B)
        qwen3-1.7b    hidden 2048, ffn 6144, 28 layers, 16 heads,  8 kv heads, head_dim 128, 151936
        hunyuan-1.8b  hidden 2048, ffn 6144, 32 layers, 16 heads,  4 kv heads, head_dim 128, 120818
        tiny          hidden 256,  ffn 512,  2 layers,  4 heads,   2 kv heads, head_dim 64,   32000 (to try this script)
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from bench_kernels import Ggml
from limits import Loops, dram_gb_s, limits, limits_line, machine

from sherry_gguf import llama_cpp
from sherry_gguf.convert.type_choice import DEFAULT_EMBEDDING_TYPE
from sherry_gguf.errors import SherryError

CONVERTED = DEFAULT_EMBEDDING_TYPE.upper()  # what convert makes of embeddings and output
TYPES = ("SHERRY", "SHERRY_G32", "SHERRY_2P", "STQ1_0", "TQ1_0", "TQ2_0", "Q1_0", "Q2_0", "Q2_K", "Q4_0", "Q8_0")
OUTPUT_TYPES = ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_0")
REFERENCE = "TQ2_0"
BATCHED = "llama-batched-bench"
BATCHED_PROMPT, BATCHED_TOKENS = 16, 32  # of each sequence


@dataclass(frozen=True)
class Shape:
    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int

    def linear(self) -> dict[str, tuple[int, int]]:
        """(rows, weights in a row) of each linear layer of a block."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "attn_q": (q, self.hidden),
            "attn_k": (kv, self.hidden),
            "attn_v": (kv, self.hidden),
            "attn_output": (self.hidden, q),
            "ffn_gate": (self.ffn, self.hidden),
            "ffn_up": (self.ffn, self.hidden),
            "ffn_down": (self.hidden, self.ffn),
        }


SHAPES = {
    "0.7b": Shape(1536, 4096, 24, 12, 12, 128, 32000),
    "1b": Shape(2048, 8192, 16, 32, 8, 64, 128256),
    "3b": Shape(3072, 8192, 28, 24, 8, 128, 128256),
    "qwen3-1.7b": Shape(2048, 6144, 28, 16, 8, 128, 151936),
    "hunyuan-1.8b": Shape(2048, 6144, 32, 16, 4, 128, 120818),
    "tiny": Shape(256, 512, 2, 4, 2, 64, 32000),
}


@dataclass(frozen=True)
class Model:
    """A file to run, and what it reads for a token."""

    path: Path
    shape: str
    type: str
    bits: float  # of a weight of the linear layers
    read_bytes: float  # of weights, in one step of generating
    products: float  # of weights and activations in the linear layers, for a token


@dataclass(frozen=True)
class Test:
    kind: str  # pp, tg or b
    count: int

    def __str__(self) -> str:
        return f"{self.kind}{self.count}"


# ---- models


class Writer:
    """Writes models of random weights."""

    def __init__(self, gguf: Any, ggml: Ggml, output: str) -> None:
        self.gguf, self.ggml, self.output = gguf, ggml, output
        self._rows: dict[tuple[str, int], npt.NDArray[np.uint8]] = {}

    def _matrix(self, type_name: str, rows: int, k: int) -> npt.NDArray[np.uint8]:
        """uint8[rows, row_bytes]: a few rows that ggml has quantized, again and again."""
        if (type_name, k) not in self._rows:
            values = np.random.default_rng(k).standard_normal((32, k)).astype(np.float32) * np.float32(0.02)
            self._rows[type_name, k] = self.ggml.quantize(self.gguf.GGMLQuantizationType[type_name].value, values)
        some = self._rows[type_name, k]
        return np.tile(some, (-(-rows // len(some)), 1))[:rows]

    def _matrices(self, shape: Shape, type_name: str) -> Iterator[tuple[str, str, int, int]]:
        """name, type, rows, weights in a row"""
        yield "token_embd.weight", self.output, shape.vocabulary, shape.hidden
        for layer in range(shape.layers):
            for name, (rows, k) in shape.linear().items():
                yield f"blk.{layer}.{name}.weight", type_name, rows, k
        yield "output.weight", self.output, shape.vocabulary, shape.hidden

    def size(self, shape: Shape, type_name: str) -> int:
        """Bytes of the matrices, which is nearly all."""
        ids, matrices = self.gguf.GGMLQuantizationType, self._matrices(shape, type_name)
        return sum(rows * self.ggml.row_bytes(ids[name].value, k) for _, name, rows, k in matrices)

    def write(self, path: Path, shape: Shape, type_name: str) -> None:
        """Tensor after tensor: no more than one is in memory."""
        gguf = self.gguf
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_name(f"random weights, {type_name}")
        writer.add_block_count(shape.layers)
        writer.add_context_length(8192)
        writer.add_embedding_length(shape.hidden)
        writer.add_feed_forward_length(shape.ffn)
        writer.add_head_count(shape.heads)
        writer.add_head_count_kv(shape.kv_heads)
        writer.add_key_length(shape.head_dim)
        writer.add_value_length(shape.head_dim)
        writer.add_rope_dimension_count(shape.head_dim)
        writer.add_rope_freq_base(500000.0)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_vocab_size(shape.vocabulary)
        writer.add_tokenizer_model("none")
        writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{type_name}"])

        norms = [f"blk.{i}.{name}.weight" for i in range(shape.layers) for name in ("attn_norm", "ffn_norm")]
        norms.append("output_norm.weight")
        ones = np.ones(shape.hidden, np.float32)
        matrices = list(self._matrices(shape, type_name))
        for name, matrix_type, rows, k in matrices:
            qtype = gguf.GGMLQuantizationType[matrix_type]
            bytes_shape = rows, self.ggml.row_bytes(qtype.value, k)
            writer.add_tensor_info(name, bytes_shape, np.dtype(np.uint8), rows * bytes_shape[1], qtype)
        for name in norms:
            writer.add_tensor_info(name, ones.shape, ones.dtype, ones.nbytes)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, matrix_type, rows, k in matrices:
            writer.write_tensor_data(self._matrix(matrix_type, rows, k))
        for _ in norms:
            writer.write_tensor_data(ones)
        writer.close()


def write_models(gguf: Any, ggml: Ggml, shape: str, types: list[str], output: str, folder: Path) -> list[Model]:
    """One model of each type in the folder; those that are there already are kept."""
    writer = Writer(gguf, ggml, output)
    paths = {type_name: folder / f"{shape}-{type_name}-{output}.gguf" for type_name in types}
    missing = {type_name: path for type_name, path in paths.items() if not path.exists()}
    needed = sum(writer.size(SHAPES[shape], type_name) for type_name in missing)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise SherryError(
            f"the models take {needed / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB left: "
            "name a directory with --keep DIR, or take fewer --types"
        )
    for type_name, path in missing.items():
        print(f"writing {path.name}", file=sys.stderr)
        partial = path.with_suffix(".partial")
        writer.write(partial, SHAPES[shape], type_name)
        partial.replace(path)
    return [read_model(gguf, path, shape) for path in paths.values()]


def read_model(gguf: Any, path: Path, shape: str | None = None) -> Model:
    """What a file's header says. shape: a name for those that may be compared (default: layers x width)."""
    try:
        reader = gguf.GGUFReader(path)
    except (OSError, ValueError) as error:
        raise SherryError(f"{path} is no GGUF file that can be read: {error}") from None
    architecture = str(reader.get_field("general.architecture").contents())

    def number(key: str, default: float) -> float:
        field = reader.get_field(f"{architecture}.{key}")
        return default if field is None else float(field.contents())

    # of experts only some are read
    used = number("expert_used_count", 1) / number("expert_count", 1)
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    read_bytes = products = 0.0
    weights: dict[str, int] = {}
    linear_bytes = 0
    for tensor in reader.tensors:
        part = used if "_exps" in tensor.name else 1
        if tensor.name != "token_embd.weight" or tied:
            read_bytes += part * int(tensor.n_bytes)
        if tensor.name.startswith("blk.") and len(tensor.shape) > 1:
            products += part * int(tensor.n_elements)
            linear_bytes += int(tensor.n_bytes)
            name = tensor.tensor_type.name
            weights[name] = weights.get(name, 0) + int(tensor.n_elements)
    if not weights:
        raise SherryError(f"{path} has no linear layers")
    return Model(
        path=path,
        shape=shape or f"{number('block_count', 0):.0f}x{number('embedding_length', 0):.0f}",
        type=max(weights, key=lambda name: weights[name]),
        bits=8 * linear_bytes / sum(weights.values()),
        read_bytes=read_bytes,
        products=products,
    )


# ---- running


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise SherryError(f"{' '.join(command)} failed with {done.returncode}: {' '.join(last)}")
    return done.stdout


def run_model(programs: dict[str, Path], model: Model, tests: list[Test], threads: int) -> dict[Test, float]:
    """Tokens per second of each test, run once."""
    out: dict[Test, float] = {}
    common = ["-m", str(model.path), "-t", str(threads)]
    counts = {kind: ",".join(str(test.count) for test in tests if test.kind == kind) for kind in ("pp", "tg")}
    if any(counts.values()):
        sizes = ["-p", counts["pp"] or "0", "-n", counts["tg"] or "0"]
        text = run([str(programs["llama-bench"]), *common, *sizes, "-r", "1", "-ngl", "0", "-o", "json"])
        for row in json.loads(text):
            test = Test("pp", row["n_prompt"]) if row["n_prompt"] else Test("tg", row["n_gen"])
            out[test] = float(row["avg_ts"])
    if batches := [test.count for test in tests if test.kind == "b"]:
        # The program may end before its last line is out: one more short run, whose line nobody misses.
        sizes = ["-npp", str(BATCHED_PROMPT), "-ntg", f"{BATCHED_TOKENS},1", "-npl", ",".join(map(str, batches))]
        context = max(batches) * (BATCHED_PROMPT + BATCHED_TOKENS)
        more = ["-c", str(context), "-ngl", "0", "--output-format", "jsonl"]
        text = run([str(programs[BATCHED]), *common, *sizes, *more])
        for row in (json.loads(line) for line in text.splitlines() if line.startswith("{")):
            if row["tg"] == BATCHED_TOKENS:
                out[Test("b", row["pl"])] = float(row["speed_tg"])
    if missed := [str(test) for test in tests if test not in out]:
        raise SherryError(f"no figures of {', '.join(missed)} came from {model.path.name}")
    return {test: out[test] for test in tests}


def share_of_limit(model: Model, test: Test, tok_s: float, measured: dict[str, Any]) -> float:
    memory, int8 = measured["dram_gb_s"] * 1e9, measured["int8_gmac_s"] * measured["threads"] * 1e9
    if test.kind == "pp":
        return float(model.products * tok_s / int8)
    sequences = test.count if test.kind == "b" else 1
    return float(model.read_bytes * tok_s / sequences / memory)


def summarize(
    models: list[Model], tests: list[Test], rates: dict[tuple[Model, Test], list[float]], measured: dict[str, Any]
) -> list[dict[str, Any]]:
    results = []
    for test in tests:
        for model in models:
            tok_s = statistics.median(rates[model, test])
            references = [m for m in models if m.type == REFERENCE and m.shape == model.shape]
            ratio = tok_s / statistics.median(rates[references[0], test]) if len(references) == 1 else None
            results.append(
                {
                    "type": model.type,
                    "shape": model.shape,
                    "model": model.path.name,
                    "test": str(test),
                    "tok_s": tok_s,
                    "tok_s_best": max(rates[model, test]),
                    "bpw": model.bits,
                    "read_gb": model.read_bytes / 1e9,
                    f"ratio_to_{REFERENCE.lower()}": ratio,
                    "share_of_limit": share_of_limit(model, test, tok_s, measured),
                }
            )
    return results


def print_results(results: list[dict[str, Any]], by_file: bool) -> None:
    label = "model" if by_file else "type"
    width = max(6, *(len(result[label]) for result in results))
    for test in dict.fromkeys(result["test"] for result in results):
        limit = "of int8 limit" if test.startswith("pp") else "of memory limit"
        print(f"\n{test:{width}} {'bpw':>6} {'tokens/s':>9} {'best':>8} {f'to {REFERENCE}':>9} {limit:>16}")
        for result in results:
            if result["test"] == test:
                ratio = result[f"ratio_to_{REFERENCE.lower()}"]
                ratio_text = "-" if ratio is None else f"{ratio:.2f}x"
                figures = f"{result['bpw']:6.3f} {result['tok_s']:9.2f} {result['tok_s_best']:8.2f}"
                print(f"{result[label]:{width}} {figures} {ratio_text:>9} {result['share_of_limit']:16.0%}")


def load_pyplot() -> Any:
    try:
        importlib.import_module("matplotlib").use("agg")
        return importlib.import_module("matplotlib.pyplot")
    except ImportError:
        raise SherryError("--plot needs matplotlib: pip install matplotlib") from None


def plot(pyplot: Any, results: list[dict[str, Any]], by_file: bool, title: str, file: Path) -> None:
    """A panel for each test, a bar for each model."""
    label = "model" if by_file else "type"
    tests = list(dict.fromkeys(result["test"] for result in results))
    figure, panels = pyplot.subplots(1, len(tests), figsize=(1 + 4.5 * len(tests), 4.5), squeeze=False)
    for panel, test in zip(panels[0], tests, strict=True):
        rows = [result for result in results if result["test"] == test]
        colors = [
            "tab:orange" if row["type"] in ("SHERRY", "SHERRY_G32", "SHERRY_2P", "STQ1_0") else "tab:blue"
            for row in rows
        ]
        bars = panel.bar(range(len(rows)), [row["tok_s"] for row in rows], color=colors)
        panel.bar_label(bars, fmt="%.1f", fontsize=8)
        panel.set_xticks(range(len(rows)), [row[label] for row in rows], rotation=45, ha="right", fontsize=8)
        panel.set_title(test)
        panel.set_ylabel("tokens/s")
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    figure.savefig(file, dpi=150)


# ---- command line


def parse_types(text: str) -> list[str]:
    types = list(dict.fromkeys(name for name in text.split(",") if name))
    for name in types or [text]:
        if name not in TYPES:
            raise SherryError(f"--types: there is no {name!r}, but {', '.join(TYPES)}")
    return types


def parse_tests(text: str) -> list[Test]:
    tests = []
    for name in text.split(","):
        match = re.fullmatch(r"(pp|tg|b)([1-9]\d*)", name)
        if not match:
            raise SherryError(f"--tests: {name!r} is none of ppN, tgN, bN (pp256,tg64)")
        tests.append(Test(match[1], int(match[2])))
    return list(dict.fromkeys(tests))


def find_programs(build: llama_cpp.Build, tests: list[Test]) -> dict[str, Path]:
    wanted = {BATCHED if test.kind == "b" else "llama-bench" for test in tests}
    programs = {name: build.bin_dir / name for name in wanted}
    for name, path in programs.items():
        if not path.is_file():
            hint = f" (`sherry-gguf build --target {name}` builds it)" if build.targets else ""
            raise SherryError(f"the build has no program {name}: {path} does not exist{hint}")
    return programs


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """That many processes that never wait run meanwhile."""
    spin = [sys.executable, "-c", "while True: pass"]
    with ExitStack() as stack:
        for _ in range(processes):  # in a session of their own: Ctrl-C is for this script, which ends them
            process = subprocess.Popen(spin, stdin=subprocess.DEVNULL, start_new_session=True)
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield


def cpus() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def bench(arguments: argparse.Namespace) -> None:
    types, tests = parse_types(arguments.types), parse_tests(arguments.tests)
    if arguments.output_tensor_type not in OUTPUT_TYPES:
        known = ", ".join(OUTPUT_TYPES)
        raise SherryError(f"--output-tensor-type: {arguments.output_tensor_type!r} is none of {known}")
    pyplot = load_pyplot() if arguments.plot else None
    build = llama_cpp.Build(arguments.build / "bin", Path(), ()) if arguments.build else llama_cpp.build()
    programs = find_programs(build, tests)
    llama_cpp.use_pinned_gguf()
    import gguf

    loops = Loops(arguments.threads)
    with ExitStack() as stack:
        if arguments.model:
            models = [read_model(gguf, path) for path in arguments.model]
        else:
            if arguments.keep:
                arguments.keep.mkdir(parents=True, exist_ok=True)
            folder = arguments.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-llama-")))
            models = write_models(gguf, Ggml(build), arguments.shape, types, arguments.output_tensor_type, folder)

        measured = limits(loops)
        rates: dict[tuple[Model, Test], list[float]] = {(model, test): [] for model in models for test in tests}
        for turn in range(arguments.rounds):
            for model in models:
                print(f"round {turn + 1} of {arguments.rounds}: {model.path.name}", file=sys.stderr)
                with busy(arguments.busy):
                    measurement = run_model(programs, model, tests, arguments.threads)
                for test, tok_s in measurement.items():
                    rates[model, test].append(tok_s)
        measured["dram_gb_s"] = max(measured["dram_gb_s"], dram_gb_s(loops))  # the machine may have been busy before

    results = summarize(models, tests, rates, measured)
    by_file = bool(arguments.model)
    vocabulary = SHAPES[arguments.shape].vocabulary
    what = "files" if by_file else f"{arguments.shape}: output {arguments.output_tensor_type}, {vocabulary} tokens"
    beside = f", busy processes: {arguments.busy}" if arguments.busy else ""
    title = f"{what}; threads: {arguments.threads}{beside}, median of rounds: {arguments.rounds}"
    about = machine(loops)
    if arguments.json:  # first: a table is easily lost, and a plot may fail
        figures = {"machine": about, "limits": measured, "results": results}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(f"{about['cpu']}, {about['cpus']} processors\n{limits_line(measured)}\n{title}")
    print_results(results, by_file)
    if arguments.plot:
        plot(pyplot, results, by_file, f"{about['cpu']}, {title}", arguments.plot)


def main() -> int:
    description, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="1b", help="(1b)")
    parser.add_argument("--types", default=",".join(TYPES), metavar="A,B,..", help=f"({','.join(TYPES)})")
    parser.add_argument("--tests", default="pp256,tg64", metavar="A,B,..", help="ppN, tgN, bN (pp256,tg64)")
    parser.add_argument("--threads", type=int, default=cpus(), metavar="N", help=f"(all: {cpus()})")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="(5)")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="run N processes beside that never wait (0)")
    parser.add_argument(
        "--output-tensor-type",
        type=str.upper,
        default=CONVERTED,
        metavar="TYPE",
        help=f"of token embeddings and output ({CONVERTED})",
    )
    parser.add_argument(
        "--model", type=Path, action="append", metavar="FILE", help="run this file, and no shape; repeat for more"
    )
    parser.add_argument("--build", type=Path, metavar="DIR", help="a build of your own: DIR/bin/llama-bench")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the models here, and use those that are there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw them; needs matplotlib")
    arguments = parser.parse_args()
    if arguments.threads <= 0 or arguments.rounds <= 0 or arguments.busy < 0:
        parser.error("--threads and --rounds are positive, --busy is not negative")
    try:
        bench(arguments)
    except SherryError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
