#!/usr/bin/env python3
"""Atheris, which is libFuzzer for Python, on our readers of headers: of GGUF files, and of checkpoints.

    pip install atheris
    python scripts/fuzz_headers.py gguf [--minutes 60] [--seed 1] [--corpus DIR]
    python scripts/fuzz_headers.py checkpoint

gguf        a whole file is one input: its header, and the types of its tensors
checkpoint  one input is a number, one byte, and what replaces the file of that number in a small checkpoint

What counts as a finding is that of fuzz.py: an exception other than SherryError, a warning, a message of several lines.
It ends the run, and the input is left in DIR as crash-...; `fuzz_headers.py gguf --input FILE` tries it again. What was
reached stays in DIR too, and the next run goes on from there. Atheris has no build for macOS, nor for every Python.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import atheris

with atheris.instrument_imports(include=["sherry_gguf"]):
    from fuzz import attempt
    from mutants import gguf_mutant, json_mutant, safetensors_mutant
    from small_checkpoints import layers

    from sherry_gguf.checkpoint import Checkpoint
    from sherry_gguf.files.gguf_file import open_gguf

FILES = 300  # to begin with
LONGEST = 32_768  # bytes
ONE = 10  # seconds for one input
WHOLE = layers()
NAMES = sorted(WHOLE)


def read_gguf(data: bytes, folder: Path) -> None:
    path = folder / "input.gguf"
    path.write_bytes(data)
    open_gguf(path)


def read_checkpoint(data: bytes, folder: Path) -> None:
    model = folder / "model"
    if not model.exists():
        model.mkdir()
        for name, content in WHOLE.items():
            (model / name).write_bytes(content)
    changed = NAMES[data[0] % len(NAMES)] if data else NAMES[0]
    (model / changed).write_bytes(data[1:])
    try:
        Checkpoint(model)
    finally:
        (model / changed).write_bytes(WHOLE[changed])


def changed_file(draw: Random) -> bytes:
    number = draw.randrange(len(NAMES))
    content = WHOLE[NAMES[number]]
    is_json = NAMES[number].endswith(".json")
    return bytes([number]) + (json_mutant(draw, content.decode()) if is_json else safetensors_mutant(draw, content))


READERS: dict[str, Callable[[bytes, Path], None]] = {"gguf": read_gguf, "checkpoint": read_checkpoint}
SEEDS: dict[str, Callable[[Random], bytes]] = {"gguf": gguf_mutant, "checkpoint": changed_file}


def main() -> None:
    description, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("of", choices=READERS)
    parser.add_argument("--minutes", type=float, default=60, metavar="N", help="(60)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="(1)")
    parser.add_argument("--corpus", type=Path, default=Path("corpus"), metavar="DIR", help="(corpus)")
    parser.add_argument("--input", type=Path, metavar="FILE", help="try this one alone")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    reader = READERS[arguments.of]

    def one_input(data: bytes) -> None:
        if wrong := attempt(lambda: reader(data, folder)):
            raise AssertionError(wrong)

    if arguments.input:
        try:
            one_input(arguments.input.read_bytes())
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return
    corpus = arguments.corpus
    (corpus / "reached").mkdir(parents=True, exist_ok=True)
    seeds = folder / "seeds"
    seeds.mkdir()
    for number in range(FILES):
        file = SEEDS[arguments.of](Random(f"{arguments.of} {arguments.seed} {number}"))
        if len(file) <= LONGEST:
            (seeds / str(number)).write_bytes(file)
    options = {
        "max_total_time": int(60 * arguments.minutes),
        "seed": arguments.seed,
        "max_len": LONGEST,
        "timeout": ONE,
        "print_final_stats": 1,
        "artifact_prefix": f"{corpus}/",
    }
    flags = [f"-{name}={value}" for name, value in options.items()]
    atheris.Setup([sys.argv[0], *flags, str(corpus / "reached"), str(seeds)], one_input)
    try:
        atheris.Fuzz()  # which ends the process
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
