#!/usr/bin/env python3
"""Make the archive that `sherry-gguf build --prebuilt FILE` takes: the runtime, for every processor of this system.

    python scripts/release_archive.py --out DIR [--target NAME ...] [-D NAME=VALUE ...] [-j N]

Writes DIR/sherry-gguf-VERSION-SYSTEM-MACHINE.tar.xz and its SHA-256 beside it, and prints what the programs need. ggml
is built once for each kind of processor, and takes the best of these libraries where it runs. The programs need the C
and C++ libraries of the machine that builds, or newer ones, and nothing else: an older Linux builds for more machines.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from sherry_gguf import __version__, llama_cpp
from sherry_gguf.errors import SherryError
from sherry_gguf.llama_cpp import prebuilt
from sherry_gguf.llama_cpp.fetch import sha256_of

DEFINES = (
    "GGML_NATIVE=OFF",
    "GGML_BACKEND_DL=ON",
    "GGML_CPU_ALL_VARIANTS=ON",
    # libraries that other machines may not have: of GNU's OpenMP, and OpenSSL
    "GGML_OPENMP=OFF",
    "LLAMA_OPENSSL=OFF",
)


def make(out: Path, targets: list[str] | None, defines: list[str], jobs: int | None) -> Path:
    """Build, and write the archive into the directory ``out``; return its path."""
    build = llama_cpp.build(targets, defines=(*DEFINES, *defines), jobs=jobs)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        partial = Path(folder, "archive")
        stamp = prebuilt.pack(build.bin_dir, build.source, build.targets, partial)
        name = f"sherry-gguf-{__version__}-{stamp['system'].lower().replace(' ', '-')}.tar.xz"
        checksum = f"{sha256_of(partial)}  {name}\n"
        path = partial.replace(out / name)
    path.with_name(f"{name}.sha256").write_text(checksum, encoding="utf-8")
    needs = " and ".join(f"{library} {version}" for library, version in stamp["needs"].items())
    print(
        f"{path}: {path.stat().st_size / 1e6:.1f} MB, needs {stamp['system']}{needs and f' with {needs}'}\n{checksum}",
        end="",
    )
    return path


def main() -> int:
    description, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the archive is written")
    parser.add_argument("--target", action="append", metavar="NAME", help="build only this (default: all programs)")
    parser.add_argument("-D", dest="defines", action="append", default=[], metavar="NAME=VALUE", help="for cmake")
    parser.add_argument("-j", "--jobs", type=int, metavar="N", help="compilers at a time")
    args = parser.parse_args()
    try:
        make(args.out, args.target, args.defines, args.jobs)
    except SherryError as error:
        print(f"release_archive.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
