"""Show what a GGUF file holds: types, the grid and scales of ternary tensors, odd ids, and who can read it.

Of a checkpoint's directory, show which family its layers belong to, and how convert would read them.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from sherry_gguf.commands import ways_out
from sherry_gguf.commands.help_page import groups
from sherry_gguf.commands.inspection_tables import print_inspection
from sherry_gguf.errors import Way
from sherry_gguf.files.inspect import as_json, inspect

if TYPE_CHECKING:
    from sherry_gguf.convert.families import Families

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
    flags.basic.add_argument(
        "file",
        metavar="FILE",
        type=Path,
        help="a GGUF file, of a split model one of its files; or a checkpoint's folder",
    )
    flags.output.add_argument("--json", action="store_true", help="for programs: one object, with every tensor")


def execute(args: argparse.Namespace) -> int:
    if args.file.is_dir():
        # imported here, as torch takes seconds that a GGUF file need not wait for
        from sherry_gguf.convert.families import families

        _show_families(families(args.file), as_object=args.json)
        return 0
    inspection = inspect(args.file, progress=sys.stderr.isatty())
    if args.json:
        print(json.dumps(as_json(inspection), indent=2))
    else:
        print_inspection(inspection, Console(soft_wrap=True, markup=False, emoji=False))  # names are no markup
    return 0


def _show_families(found: Families, *, as_object: bool) -> None:
    refusal = found.refusal and found.refusal.worded(ways_out.SOURCE)
    if as_object:
        said = {"directory": str(found.directory), "architecture": found.architecture}
        print(
            json.dumps(
                {**said, "families": [asdict(m) for m in found.members], "read_as": found.read_as, "refusal": refusal},
                indent=2,
            )
        )
        return
    print(f"{found.directory}: {found.architecture}, {sum(m.layers for m in found.members)} layers")
    for members in found.members:
        scales = f", a scale {' or '.join(members.scales)} in the first rows" if members.scales else ""
        print(f"{members.layers}, the first {members.first}: {members.family}; {members.zeros:.1%} zeros{scales}")
    print(f"convert reads {found.read_as}" if refusal is None else f"convert refuses them: {refusal}")
