"""Print the path of a program that `sherry-gguf build` built, or of the patched source tree."""

from __future__ import annotations

import argparse

from sherry_gguf.commands import ways_out
from sherry_gguf.llama_cpp.builds import find_build, find_source

WAYS = ways_out.BUILD


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("name", nargs="?", help="a program, like llama-cli")
    what.add_argument(
        "--source", action="store_true", help="the tree the last build was made from; fetched and patched if need be"
    )


def execute(args: argparse.Namespace) -> int:
    """Print one path on stdout, and nothing else."""
    print(find_source() if args.source else find_build().program(args.name))
    return 0
