"""Write one page about a GGUF file: its bytes beside other types, its zeros, codes and scales, and what was measured.

The page is one HTML file that loads nothing, for light and dark screens, narrow and wide ones.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sherry_gguf.commands import ways_out
from sherry_gguf.commands.help_page import groups
from sherry_gguf.files.inspect import inspect
from sherry_gguf.files.outfile import require_free
from sherry_gguf.page import write_page
from sherry_gguf.page.measured import read_bench, read_parity

WAYS = ways_out.OUTFILE

USAGE = "FILE [FLAG ...]"

EXAMPLES = (
    "sherry-gguf report model-SHERRY.gguf",
    "sherry-gguf report model-SHERRY.gguf --parity parity.json --outfile page.html",
    "sherry-gguf report model-SHERRY.gguf --bench bench.json --force",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    flags = groups(parser)
    flags.basic.add_argument("file", metavar="FILE", type=Path, help="a GGUF file")
    flags.basic.add_argument(
        "--parity", metavar="JSON", type=Path, help="also show what `sherry-gguf parity --json JSON` wrote of it"
    )
    flags.basic.add_argument(
        "--bench", metavar="JSON", type=Path, help="also show what scripts/bench_llama.py --json JSON measured"
    )
    flags.output.add_argument(
        "--outfile", "--out", metavar="FILE", type=Path, help="default: beside the file, as .html"
    )
    flags.output.add_argument("--force", action="store_true", help="replace an existing outfile")


def execute(args: argparse.Namespace) -> int:
    outfile = args.outfile or args.file.with_suffix(".html")
    inputs = [path for path in (args.file, args.parity, args.bench) if path is not None]
    require_free(outfile, args.force, inputs)  # before weights are read, which takes a while
    parity = args.parity and read_parity(args.parity)
    bench = args.bench and read_bench(args.bench)
    inspection = inspect(args.file, progress=sys.stderr.isatty())
    write_page(inspection, outfile, parity=parity, bench=bench, force=args.force)
    print(outfile)
    return 0
