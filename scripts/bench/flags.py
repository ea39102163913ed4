"""Flags that the benches which run whole models have in common."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from sherry_gguf.convert.type_choice import DEFAULT_EMBEDDING_TYPE
from sherry_gguf.errors import SherryError

from .shapes import SHAPES

CONVERTED = DEFAULT_EMBEDDING_TYPE.upper()  # what convert makes of embeddings and output
TYPES = ("SHERRY", "SHERRY_G32", "SHERRY_2P", "STQ1_0", "TQ1_0", "TQ2_0", "Q1_0", "Q2_0", "Q2_K", "Q4_0", "Q8_0")
OUTPUT_TYPES = ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_0")


def parse_types(text: str) -> list[str]:
    types = list(dict.fromkeys(name for name in text.split(",") if name))
    for name in types or [text]:
        if name not in TYPES:
            raise SherryError(f"--types: there is no {name!r}, but {', '.join(TYPES)}")
    return types


def cpus() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def add_model_flags(parser: argparse.ArgumentParser, types: str) -> None:
    """Which models of random weights; types: the default."""
    parser.add_argument("--shape", choices=SHAPES, default="1b", help="(1b)")
    parser.add_argument("--types", default=types, metavar="A,B,..", help=f"({types})")
    parser.add_argument(
        "--output-tensor-type",
        type=str.upper,
        default=CONVERTED,
        metavar="TYPE",
        help=f"of token embeddings and output ({CONVERTED})",
    )
    parser.add_argument("--build", type=Path, metavar="DIR", help="a build of your own: DIR/bin/llama-bench")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the models here, and use those that are there")


def add_flags(parser: argparse.ArgumentParser, types: str, tests: str) -> None:
    """types and tests: the defaults."""
    add_model_flags(parser, types)
    parser.add_argument("--tests", default=tests, metavar="A,B,..", help=f"ppN, tgN, bN ({tests})")
    parser.add_argument("--threads", type=int, default=cpus(), metavar="N", help=f"(all: {cpus()})")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="(5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")


def require_output_type(name: str) -> None:
    if name not in OUTPUT_TYPES:
        raise SherryError(f"--output-tensor-type: {name!r} is none of {', '.join(OUTPUT_TYPES)}")


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    arguments = parser.parse_args()
    if arguments.threads <= 0 or arguments.rounds <= 0:
        parser.error("--threads and --rounds are positive")
    return arguments


def attempt(bench: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> int:
    """The exit status of a bench, whose error is one line."""
    try:
        bench(arguments)
    except SherryError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
