"""Change the type ids of a GGUF's Sherry tensors, and not a byte of their weights."""

from __future__ import annotations

import argparse
from pathlib import Path

from sherry_gguf.commands import ways_out
from sherry_gguf.commands.help_page import groups
from sherry_gguf.files.retag import retag, targets

WAYS = {**ways_out.OUTFILE, **ways_out.GGUF}

USAGE = "FILE --to ID [FLAG ...]"

EXAMPLES = (
    "sherry-gguf retag model-STQ1_0.gguf --to 43",
    "sherry-gguf retag model-STQ1_0.gguf --to 42 --outfile old.gguf",
    "sherry-gguf retag model-SHERRY.gguf --to 512-native --in-place",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    flags = groups(parser)
    flags.basic.add_argument(
        "file", metavar="FILE", type=Path, help="a GGUF file with STQ1_0 or SHERRY tensors, under whatever id"
    )
    flags.basic.add_argument(
        "--to",
        metavar="ID",
        required=True,
        choices=tuple(targets()),
        help="42: STQ1_0 as the first files have it; 43: as later ones and this project have it; "
        "512-native: SHERRY, for the patched llama.cpp",
    )
    out = flags.output.add_mutually_exclusive_group()
    out.add_argument("--outfile", metavar="FILE", type=Path, help="default: beside the file, named after it and the id")
    out.add_argument("--in-place", action="store_true", help="change the file itself, all at once")
    flags.output.add_argument("--force", action="store_true", help="replace an existing outfile")


def execute(args: argparse.Namespace) -> int:
    print(retag(args.file, args.to, args.outfile, in_place=args.in_place, force=args.force))
    return 0
