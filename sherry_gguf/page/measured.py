"""The JSON of a comparison and of a benchmark, as far as the page shows it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sherry_gguf.errors import SherryError


@dataclass(frozen=True)
class Parity:
    """Perplexities of PyTorch and of the runtime, mean KL divergence in nats, top_1 from 0 to 1."""

    text: str
    positions: int
    perplexity_torch: float
    perplexity: float
    kld: float
    top_1: float
    wrong_weights: int
    weights: int
    passed: bool


@dataclass(frozen=True)
class Speed:
    """Tokens per second of a model in a test, and the rate at which the machine can do no more."""

    test: str
    label: str
    rate: float
    limit: float


@dataclass(frozen=True)
class Bench:
    """dram: 10^9 bytes per second of all threads; int8: 10^9 products per second of a core"""

    cpu: str
    threads: int
    dram: float
    int8: float
    speeds: tuple[Speed, ...]


def read_parity(path: Path) -> Parity:
    """Raises SherryError for what is no such JSON, or has figures that are not finite."""
    said = _load(path)
    try:
        total, weights = said["total"], said["weights"]
        return Parity(
            Path(said["text"]).name, int(total["positions"]), float(total["base_perplexity"]),
            float(total["other_perplexity"]), float(total["kld_mean"]), float(total["same_top1"]),
            int(weights["wrong_weights"]), int(weights["weights"]), bool(said["ok"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise SherryError(f"{path}: has not the finite figures of a comparison with PyTorch") from error


def read_bench(path: Path) -> Bench:
    """Raises SherryError for what is no JSON of scripts/bench_llama.py."""
    said = _load(path)
    try:
        limits, rows = said["limits"], said["results"]
        if not all(re.fullmatch(r"(pp|tg|b)\d+", row["test"]) for row in rows):
            raise ValueError
        by_type = len({(row["test"], row["type"]) for row in rows}) == len(rows)
        speeds = [
            Speed(
                row["test"], row["type"] if by_type else row["model"], float(row["tok_s"]),
                row["tok_s"] / row["share_of_limit"],
            )
            for row in rows
        ]  # fmt: skip
        dram, int8 = float(limits["dram_gb_s"]), float(limits["int8_gmac_s"])
        return Bench(str(said["machine"]["cpu"]), int(limits["threads"]), dram, int8, tuple(speeds))
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise SherryError(f"{path}: has not the figures that scripts/bench_llama.py writes") from error


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SherryError(f"{path}: cannot be read, {error.strerror}") from error
    except ValueError as error:
        raise SherryError(f"{path}: is no JSON") from error
