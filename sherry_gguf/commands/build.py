"""Fetch the pinned llama.cpp, patch it, and build its programs in the user's cache; at once when up to date.

Or take programs and libraries that another machine built (--prebuilt), which needs no compiler and takes seconds."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from sherry_gguf.commands import ways_out
from sherry_gguf.commands.help_page import groups
from sherry_gguf.errors import SherryError
from sherry_gguf.llama_cpp import fetch
from sherry_gguf.llama_cpp.builds import PROGRAMS, TESTS, Build, build, install, remember
from sherry_gguf.llama_cpp.cache import locked, say
from sherry_gguf.llama_cpp.gpu import GPUS, gpu_defines, vulkan_paths
from sherry_gguf.llama_cpp.upstream import PatchSet

WAYS = ways_out.BUILD

USAGE = "[FLAG ...]"

EXAMPLES = (
    "sherry-gguf build",
    "sherry-gguf build --gpu vulkan",
    "sherry-gguf build --prebuilt sherry-gguf-runtime.tar.xz",
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
    origin.add_argument("--prebuilt", type=Path, metavar="FILE", help="compile nothing, take the build in this archive")
    flags.checks.add_argument(
        "--sha256", metavar="HEX", help="what the archive's SHA-256 must be (default: what FILE.sha256 says)"
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
        help="compile this backend too: layers go there by -ngl of llama.cpp's programs",
    )
    flags.checks.add_argument("--tests", action="store_true", help=f"build the native tests too: {' '.join(TESTS)}")
    flags.expert.add_argument(
        "-D", dest="defines", action="append", default=[], metavar="NAME=VALUE", help="a setting for cmake"
    )
    flags.basic.add_argument("-j", "--jobs", type=_positive, metavar="N", help="compilers at a time (default: ninja's)")


def execute(args: argparse.Namespace) -> int:
    """Build, and print where it is."""
    start = time.monotonic()
    if args.prebuilt is None and args.sha256 is not None:
        raise SherryError("--sha256 is that of an archive: name it with --prebuilt FILE")
    made = _compile(args) if args.prebuilt is None else _install(args)
    print(f"{len(made.programs)} programs in {made.bin_dir} ({time.monotonic() - start:.1f} s)")
    return 0


def _compile(args: argparse.Namespace) -> Build:
    if args.sdist is not None:
        with locked() as cache:
            fetch.add(cache, PatchSet.load().pin, args.sdist)
    defines = [*(gpu_defines(args.gpu) if args.gpu else ()), *args.defines]
    made = build(args.target, tests=args.tests, source=args.source, defines=defines, jobs=args.jobs)
    remember(args.source, defines)
    if args.gpu == "vulkan":
        left_out = [name for name, compiles in vulkan_paths(made.source).items() if not compiles]
        say(f"shaders that this glslc is too old for, and which are left out: {', '.join(left_out) or 'none'}")
    return made


def _install(args: argparse.Namespace) -> Build:
    if args.target or args.tests or args.gpu or args.defines or args.jobs:
        raise SherryError("--prebuilt takes an archive as it is: leave out --target, --gpu, --tests, -D and -j")
    return install(args.prebuilt, args.sha256)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, not {text!r}")
    return int(text)
