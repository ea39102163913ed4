"""Fetch the pinned llama.cpp, patch it, and build its programs in the user's cache; at once when up to date."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from sherry_gguf.commands import ways_out
from sherry_gguf.commands.help_page import groups
from sherry_gguf.llama_cpp import fetch
from sherry_gguf.llama_cpp.builds import PROGRAMS, TESTS, build, remember
from sherry_gguf.llama_cpp.cache import locked, say
from sherry_gguf.llama_cpp.gpu import GPUS, gpu_defines, vulkan_paths
from sherry_gguf.llama_cpp.upstream import PatchSet

WAYS = ways_out.BUILD

USAGE = "[FLAG ...]"

EXAMPLES = (
    "sherry-gguf build",
    "sherry-gguf build --target llama-cli --target llama-server",
    "sherry-gguf build --gpu vulkan",
    "sherry-gguf build --source ~/llama.cpp -D GGML_NATIVE=OFF",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    flags = groups(parser)
    origin = flags.basic.add_mutually_exclusive_group()
    origin.add_argument(
        "--source", type=Path, metavar="DIR", help="patch and build a copy of this llama.cpp checkout, not the pin"
    )
    origin.add_argument(
        "--sdist", type=Path, metavar="FILE", help="take the pinned sdist from this file instead of fetching it"
    )
    flags.basic.add_argument(
        "--target",
        action="append",
        metavar="NAME",
        help=f"build only this, may be repeated (default: {' '.join(PROGRAMS)})",
    )
    flags.basic.add_argument(
        "--gpu",
        choices=sorted(GPUS),
        help="compile this backend too; with CUDA the layers of Sherry's types stay on the CPU",
    )
    flags.checks.add_argument("--tests", action="store_true", help=f"build the native tests too: {' '.join(TESTS)}")
    flags.expert.add_argument(
        "-D", dest="defines", action="append", default=[], metavar="NAME=VALUE", help="a setting for cmake"
    )
    flags.basic.add_argument("-j", "--jobs", type=_positive, metavar="N", help="compilers at a time (default: ninja's)")


def execute(args: argparse.Namespace) -> int:
    """Build, and print where it is."""
    start = time.monotonic()
    if args.sdist is not None:
        with locked() as cache:
            fetch.add(cache, PatchSet.load().pin, args.sdist)
    defines = [*(gpu_defines(args.gpu) if args.gpu else ()), *args.defines]
    made = build(args.target, tests=args.tests, source=args.source, defines=defines, jobs=args.jobs)
    remember(args.source, defines)
    if args.gpu == "vulkan":
        left_out = [name for name, compiles in vulkan_paths(made.source).items() if not compiles]
        say(f"shaders that this glslc is too old for, and which are left out: {', '.join(left_out) or 'none'}")
    print(f"{len(made.programs)} programs in {made.bin_dir} ({time.monotonic() - start:.1f} s)")
    return 0


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, not {text!r}")
    return int(text)
