"""What the trained methods came to: a table of held-out perplexities, and pictures of gradients and latents."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sherry_gguf.train.measures import MAGNITUDE_EDGES

from . import methods

_BEST_DENSE = ("absmean", "twn", "tequila")


def run(args: argparse.Namespace) -> None:
    found = {(method.name, seed): directory for method, seed, directory in methods.finished(args.work, args.seeds)}
    names = list(dict.fromkeys(name for name, _ in found))
    perplexities = {key: methods.perplexity(directory) for key, directory in found.items()}
    print(f"| | {' | '.join(f'seed {seed}' for seed in args.seeds)} | to the best dense ternary % |")
    print("|---" * (len(args.seeds) + 2) + "|")
    for name in names:
        values = [perplexities.get((name, seed), float("nan")) for seed in args.seeds]
        best = [min(perplexities.get((dense, seed), float("inf")) for dense in _BEST_DENSE) for seed in args.seeds]
        change = " ".join(f"{100 * (value / least - 1):+.1f}" for value, least in zip(values, best, strict=True))
        print(f"| {name} | {' | '.join(f'{value:.1f}' for value in values)} | {change} |")
    measured = {key: _measures(directory) for key, directory in found.items() if key[1] == args.seeds[0]}
    _plot({name: lines for (name, _), lines in measured.items() if lines}, args.work)


def _measures(directory: Path) -> list[dict[str, Any]]:
    file = directory / "measures.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def _plot(measured: dict[str, list[dict[str, Any]]], work: Path) -> None:
    """name -> lines of measures.jsonl, into WORK/rank.png and WORK/latents.png."""
    ranks, latents = Figure(figsize=(7, 4), layout="constrained"), Figure(figsize=(7, 4), layout="constrained")
    rank_axis, axis = ranks.subplots(), latents.subplots()
    for name, lines in measured.items():
        steps = [line["step"] for line in lines]
        rank_axis.plot(steps, [np.mean(list(line["effective_rank"].values())) for line in lines], label=name)
        counts = np.array(lines[-1]["magnitudes"], dtype=np.float64)
        axis.stairs(counts / counts.sum() / np.diff(MAGNITUDE_EDGES), MAGNITUDE_EDGES, label=name)
    rank_axis.set(xlabel="optimizer step", ylabel="effective rank of the gradients, mean of layers")
    axis.set(xlabel="|w| / alpha after training", ylabel="density of latents")
    for figure, file in ((ranks, "rank.png"), (latents, "latents.png")):
        figure.axes[0].legend(fontsize="small")
        figure.axes[0].grid(alpha=0.3)
        figure.savefig(work / file, dpi=100)
        print(f"wrote {work / file}")
