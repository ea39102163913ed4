"""Store the ternary tensors of a GGUF in another type. Every weight stays as it is, or nothing is written."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sherry_gguf.commands import ways_out
from sherry_gguf.commands.help_page import groups
from sherry_gguf.errors import Way
from sherry_gguf.files.requantize import requantize
from sherry_gguf.formats.i2_s import LAYOUTS
from sherry_gguf.formats.table import named, tensor_types

WAYS = {
    **ways_out.OUTFILE,
    **ways_out.GGUF,
    Way.ALL_FIT: "all fit --outtype {0}",
    Way.I2S_LAYOUT: "say which it is (--i2s-layout x86, arm or columns)",
}

USAGE = "FILE --outtype TYPE [FLAG ...]"

EXAMPLES = (
    "sherry-gguf requantize model-SHERRY.gguf --outtype q2_0",
    "sherry-gguf requantize model-SHERRY.gguf --outtype tq2_0 --outfile anywhere.gguf",
    "sherry-gguf requantize model-TQ2_0.gguf --outtype sherry --force",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    outtypes = tuple(tensor_type.outtype for tensor_type in tensor_types())
    flags = groups(parser)
    flags.basic.add_argument(
        "file", metavar="FILE", type=Path, help=f"a GGUF file with tensors in {', '.join(outtypes)}, i2_s"
    )
    flags.basic.add_argument(
        "--outtype",
        metavar="TYPE",
        required=True,
        type=str.lower,
        choices=outtypes,
        help="of all ternary tensors: %(choices)s",
    )
    flags.expert.add_argument(
        "--i2s-layout",
        metavar="LAYOUT",
        choices=LAYOUTS,
        help="how the bytes of I2_S tensors of bitnet.cpp lie, which no file tells: x86, as its builds for that and "
        "its converter write them, arm, as those for ARM do, or columns, four rows in a byte, as its x86 builds "
        "without ACT_PARALLEL do",
    )
    flags.output.add_argument(
        "--outfile", metavar="FILE", type=Path, help="default: beside the file, named after it and the type"
    )
    flags.output.add_argument("--force", action="store_true", help="replace an existing outfile")


def execute(args: argparse.Namespace) -> int:
    wanted = named(args.outtype)
    assert wanted is not None
    print(
        requantize(
            args.file,
            wanted,
            args.outfile,
            i2s_layout=args.i2s_layout,
            force=args.force,
            progress=sys.stderr.isatty(),
        )
    )
    return 0
