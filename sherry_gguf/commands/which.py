"""Print the path of a built program, of the patched source tree, or the kernel that multiplies SHERRY weights."""

from __future__ import annotations

import argparse
import ctypes

from sherry_gguf.commands import ways_out
from sherry_gguf.commands.help_page import groups
from sherry_gguf.llama_cpp.builds import Build, find_build, find_source

WAYS = ways_out.BUILD

USAGE = "NAME | --source | --kernel"

EXAMPLES = (
    "sherry-gguf which llama-cli",
    "sherry-gguf which --source",
    "sherry-gguf which --kernel",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    what = groups(parser).basic.add_mutually_exclusive_group(required=True)
    what.add_argument("name", metavar="NAME", nargs="?", help="a program, like llama-cli")
    what.add_argument(
        "--source", action="store_true", help="the tree the last build was made from; fetched and patched if need be"
    )
    what.add_argument(
        "--kernel", action="store_true", help="the kernel that multiplies SHERRY weights here: the fastest, timed now"
    )


def execute(args: argparse.Namespace) -> int:
    """Print one path or name on stdout, and nothing else; how fast the kernels are is logged on stderr."""
    if args.kernel:
        print(_kernel(find_build()))
    else:
        print(find_source() if args.source else find_build().program(args.name))
    return 0


def _kernel(build: Build) -> str:
    build.lib("ggml-base")
    # of libraries for several kinds of processor ggml takes the one with the highest score, 0 if it cannot run here
    each = [ctypes.CDLL(str(path)) for path in sorted(build.bin_dir.glob("libggml-cpu-*.so"))]
    best = max(each, key=lambda library: int(library.ggml_backend_score())) if each else build.lib("ggml-cpu")
    chosen = best.ggml_sherry_chosen_tile_kernel
    chosen.restype = ctypes.POINTER(ctypes.c_char_p)  # its name comes first
    name: bytes = chosen().contents.value
    return name.decode()
