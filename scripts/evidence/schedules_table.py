"""What the schedules came to: perplexity, effective rank of the gradients, and how many latents were trapped."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from sherry_gguf.train.directory import open_model
from sherry_gguf.train.evaluate import perplexity
from sherry_gguf.train.layers import quantize_model, quantized_layers
from sherry_gguf.train.measures import MAGNITUDE_EDGES
from sherry_gguf.weights.granularity import Granularity

from . import methods, schedules

Codes = dict[str, torch.Tensor]


def run(args: argparse.Namespace) -> None:
    """A row per schedule, a value per seed in each cell."""
    rows: dict[str, list[tuple[str, ...]]] = {}
    start = schedules.start(args.work)
    codes: dict[str, Codes] = {}  # of the start, by method
    for schedule, _, directory in schedules.finished(args.work, args.seeds):
        row: tuple[str, ...] = (f"{methods.perplexity(directory):.1f}",)
        if schedule.method != "float":
            before = codes.setdefault(schedule.method, codes_of(start, schedule.method))
            row += (*measured(directory), f"{100 * changed(before, codes_of(directory, schedule.method)):.0f}%")
        rows.setdefault(schedule.name, []).append(row)
    print("| | held-out perplexity | effective rank | near alpha / 2 | near alpha | codes changed |")
    print("|---" * 6 + "|")
    print(f"| the float model | {methods.perplexity(start):.1f} | | | | |")
    print(f"| the same, made Sherry as it is | {as_it_is(args.work):.1f} | | | | |")
    for name, values in rows.items():
        cells = [", ".join(cell) for cell in zip(*values, strict=True)]
        print(f"| {name} | {' | '.join(cells + [''] * (5 - len(cells)))} |")


def as_it_is(work: Path) -> float:
    """Held-out perplexity of the float model with Sherry's weights, before it is trained on."""
    model, tokenizer = open_model(schedules.start(work))
    quantize_model(model, "sherry", Granularity("per_group", schedules.GROUP_SIZE))
    return perplexity(model.eval(), tokenizer, [schedules.texts(work).held_out], methods.CONTEXT)


def measured(directory: Path) -> tuple[str, str, str]:
    """Effective rank of the gradients, mean of layers and steps; shares of the last step's |w| / alpha in 0.4..0.6 and
    in 0.9..1.1, where trapped latents are.
    """
    lines = [json.loads(line) for line in (directory / "measures.jsonl").read_text().splitlines()]
    rank = np.mean([list(line["effective_rank"].values()) for line in lines])
    shares = np.array(lines[-1]["magnitudes"]) / np.sum(lines[-1]["magnitudes"])
    middles = (MAGNITUDE_EDGES[1:] + MAGNITUDE_EDGES[:-1]) / 2
    half, whole = (float(shares[np.abs(middles - peak) < 0.1].sum()) for peak in (0.5, 1.0))
    return f"{rank:.0f}", f"{100 * half:.0f}%", f"{100 * whole:.0f}%"


def codes_of(directory: Path, method: str) -> Codes:
    """Layer -> int8[out, in] of -1, 0 and 1: what the method makes of the saved latents."""
    model, _ = open_model(directory)
    quantize_model(model, method, Granularity("per_group", schedules.GROUP_SIZE))
    return {name: layer.quantized_weight().sign().to(torch.int8) for name, layer in quantized_layers(model).items()}


def changed(before: Codes, after: Codes) -> float:
    """The share of weights whose code is another one: weights that were not trapped in theirs."""
    different = sum(int((before[name] != codes).sum()) for name, codes in after.items())
    return different / sum(codes.numel() for codes in after.values())
