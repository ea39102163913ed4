"""Store the ternary tensors of a GGUF in another type. Every weight stays as it is, or nothing is written."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sherry_gguf.files.requantize import OUTTYPES, requantize


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", type=Path, help=f"a GGUF file with tensors in {', '.join(OUTTYPES)}")
    parser.add_argument("--outtype", required=True, type=str.lower, choices=OUTTYPES, help="of all ternary tensors")
    parser.add_argument("--outfile", type=Path, help="default: beside the file, named after it and the type")
    parser.add_argument("--force", action="store_true", help="replace an existing outfile")


def run(args: argparse.Namespace) -> int:
    print(requantize(args.file, args.outtype, args.outfile, force=args.force, progress=sys.stderr.isatty()))
    return 0
