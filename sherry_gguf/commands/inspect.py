"""Show what a GGUF file holds: types, the grid and scales of ternary tensors, odd ids, and who can read it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console

from sherry_gguf.commands.help_page import groups
from sherry_gguf.commands.inspection_tables import print_inspection
from sherry_gguf.errors import Way
from sherry_gguf.files.inspect import as_json, inspect

WAYS: dict[Way, str] = {}  # what it refuses is no GGUF file: there is no way out

USAGE = "FILE [FLAG ...]"

EXAMPLES = (
    "sherry-gguf inspect model-SHERRY.gguf",
    "sherry-gguf inspect model-SHERRY.gguf --json",
    "sherry-gguf inspect model-00001-of-00003.gguf",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    flags = groups(parser)
    flags.basic.add_argument("file", metavar="FILE", type=Path, help="a GGUF file; of a split model, one of its files")
    flags.output.add_argument("--json", action="store_true", help="for programs: one object, with every tensor")


def execute(args: argparse.Namespace) -> int:
    inspection = inspect(args.file, progress=sys.stderr.isatty())
    if args.json:
        print(json.dumps(as_json(inspection), indent=2))
    else:
        print_inspection(inspection, Console(soft_wrap=True, markup=False, emoji=False))  # names are no markup
    return 0
