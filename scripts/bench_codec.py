#!/usr/bin/env python3
"""How fast the codec is on one core: MB/s of float32 weights. Checks first, then times; medians of several runs."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch

from sherry_gguf.formats import sherry
from sherry_gguf.weights.quantize import quantize

T = TypeVar("T")


def timed(run: Callable[[], T], rounds: int) -> tuple[float, T]:
    """Median seconds of ``rounds`` runs after one that is not counted, and the last result."""
    result = run()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        result = run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    torch.set_num_threads(1)
    noise = torch.randn(args.rows, args.columns, generator=torch.Generator().manual_seed(0))
    weights = noise.bfloat16().float().numpy()  # as a checkpoint's: a group in 400 has a tie
    megabytes = weights.nbytes / 1e6

    quantizing, grid = timed(lambda: quantize(weights), args.rounds)
    packing, packed = timed(lambda: sherry.BLOCKS.pack(grid.codes, grid.scales), args.rounds)
    unpacking, values = timed(lambda: sherry.SHERRY.dequantize(packed), args.rounds)
    assert np.array_equal(sherry.SHERRY.pack(values), packed)

    print(f"{args.rows} x {args.columns} weights, one thread, median of {args.rounds}, MB/s of float32")
    print(f"quantize and pack   {megabytes / (quantizing + packing):7.0f}")
    print(f"unpack to float32   {megabytes / unpacking:7.0f}")


if __name__ == "__main__":
    main()
