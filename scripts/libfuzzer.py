#!/usr/bin/env python3
"""libFuzzer on what ggml does with a GGUF file: it changes bytes, and keeps what reaches code that nothing reached.

    apt install clang-19 libclang-rt-19-dev
    CC=clang-19 CXX=clang++-19 python scripts/libfuzzer.py [--minutes 60] [--seed 1] [--corpus DIR]

The program is that of fuzz_native.py, tests/native/mutants.cpp, and what counts as a finding is the same, but for the
weights, which are not compared with those of Python. It begins with files that are whole or nearly so.

DIR keeps what was reached, so that the next run goes on from there. A finding ends it: the file is then in DIR too, as
crash-..., timeout-... or oom-..., and `DIR/mutants FILE` shows it again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from fuzz_native import compiled, drawn

from sherry_gguf.errors import SherryError

FILES = 400  # to begin with
LONGEST = 16_384  # bytes of a file: longer ones take longer, and have nothing that shorter ones have not
ONE = 10  # seconds for one file
MEMORY = 4096  # MiB
# The coverage of all; and clang's sanitizer, unlike gcc's, minds calls through a pointer to another type of function,
# as upstream's of its dot products of floats.
FLAGS = ["-fsanitize=fuzzer-no-link", "-fno-sanitize=function"]


def main() -> int:
    description, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60, metavar="N", help="(60)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="(1)")
    parser.add_argument("--corpus", type=Path, default=Path("corpus"), metavar="DIR", help="(corpus)")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        corpus = arguments.corpus.resolve()
        (corpus / "reached").mkdir(parents=True, exist_ok=True)
        seeds = Path(scratch) / "seeds"
        seeds.mkdir()
        for number in range(FILES):
            if len(file := drawn(arguments.seed, number)) <= LONGEST:
                (seeds / str(number)).write_bytes(file)
        try:
            program = compiled(corpus, FLAGS, ["-DLIBFUZZER", "-fsanitize=fuzzer"])  # which brings a main()
        except SherryError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        options = {
            "max_total_time": int(60 * arguments.minutes),
            "seed": arguments.seed,
            "max_len": LONGEST,
            "timeout": ONE,
            "rss_limit_mb": MEMORY,
            "print_final_stats": 1,
            "artifact_prefix": f"{corpus}/",
        }
        command = [program, *(f"-{name}={value}" for name, value in options.items()), corpus / "reached", seeds]
        return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main())
