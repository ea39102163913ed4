#!/usr/bin/env python3
"""Damage GGUF files and checkpoints at random, and see that each is read or refused in one line.

    python scripts/fuzz.py [--seed 1] [--minutes 20]
    python scripts/fuzz.py --seed 1 --only gguf --number 1234 --keep DIR

A mutant is drawn from the seed and its number, so that a finding comes back with both, and --keep has its file.

gguf        header, inspect, retag and requantize of a GGUF file with changed fields or bytes
checkpoint  loading and planning a small checkpoint whose safetensors header, index or config.json is changed
convert     converting a small model with such a file all the way, to a GGUF file that is opened again

What counts as a finding: an exception other than SherryError, a warning of NumPy, a message of several lines, an output
after a refusal, an output that reads otherwise than the input, ten seconds for one mutant. Whatever it finds, it goes
on, and ends with status 1; only a mutant that takes a minute ends it at once, with where it was.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from mutants import gguf_mutant, json_mutant, safetensors_mutant
from small_checkpoints import layers, whole_model

from sherry_gguf import llama_cpp
from sherry_gguf.api import load_tensors
from sherry_gguf.checkpoint import Checkpoint
from sherry_gguf.convert import convert
from sherry_gguf.convert.plan import make_plan
from sherry_gguf.errors import SherryError
from sherry_gguf.files.gguf_file import open_gguf
from sherry_gguf.files.header import read_header
from sherry_gguf.files.inspect import as_json, inspect
from sherry_gguf.files.requantize import requantize
from sherry_gguf.files.retag import retag, targets
from sherry_gguf.formats.table import tensor_types

SLOW, HANGS = 10, 60  # seconds for one mutant


@dataclass(frozen=True)
class Finding:
    """What a mutant did that no input may do."""

    kind_of_file: str
    seed: int
    number: int
    what: str

    def __str__(self) -> str:
        return f"--seed {self.seed} --only {self.kind_of_file} --number {self.number}: {self.what}"


def attempt(action: Callable[[], object]) -> str | None:
    """None if it succeeds, "" if it refuses in one line, else what is wrong about how it ended."""
    start = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # NumPy's would stand before the one line
            action()
        wrong = None
    except SherryError as error:
        text = str(error)
        wrong = "" if len(text.splitlines()) == 1 else f"a message of other than one line: {text!r}"
    except Exception as error:
        wrong = f"{type(error).__name__}: {error}"
    took = time.monotonic() - start
    return wrong if took < SLOW else f"{took:.0f} s"


def _differs(path: Path, outfile: Path | None) -> str | None:
    """What is wrong about an output: None if all of it reads as the input does, or nothing had to be written."""
    if outfile is None:
        return None
    old, new = load_tensors(path), load_tensors(outfile)
    for name in old:
        before: list[Any] = []
        after: list[Any] = []
        ends = [attempt(partial(_append, into, of, name)) for into, of in ((before, old), (after, new))]
        if ends[0] != ends[1] or not all(map(_same, before, after)):
            return f"{name} is not what it was"
    return None


_same = partial(np.array_equal, equal_nan=True)  # what a tensor of F32 has is its own business


def _append(into: list[Any], tensors: Mapping[str, Any], name: str) -> None:
    into.append(tensors[name])


def try_gguf(draw: Random, folder: Path) -> Iterator[tuple[str, str | None]]:
    """What was done with a mutant, and how it ended, as ``attempt`` has it."""
    path, outfile = folder / "mutant.gguf", folder / "out.gguf"
    path.write_bytes(gguf_mutant(draw))

    def write(action: Callable[[], Path | None]) -> str | None:
        outfile.unlink(missing_ok=True)
        written: list[Path | None] = []
        wrong = attempt(lambda: written.append(action()))
        if wrong is None:
            return _differs(path, *written)
        return f"an output after {wrong or 'a refusal'}" if outfile.exists() else wrong

    to, wanted = draw.choice(sorted(targets())), draw.choice(tensor_types())
    yield "header", attempt(lambda: read_header(path))
    yield "inspect", attempt(lambda: json.dumps(as_json(inspect(path))))
    yield "retag", write(lambda: retag(path, to, outfile).outfile)
    yield "requantize", write(lambda: requantize(path, wanted, outfile).outfile)


def changed(draw: Random, whole: Mapping[str, bytes], names: Sequence[str], model: Path) -> None:
    """Write a checkpoint of which one file, out of the names, is another."""
    shutil.rmtree(model, ignore_errors=True)
    model.mkdir()
    chosen = draw.choice(names)
    for name, content in whole.items():
        if name == chosen:
            is_json = name.endswith(".json")
            content = json_mutant(draw, content.decode()) if is_json else safetensors_mutant(draw, content)
        (model / name).write_bytes(content)


def try_checkpoint(draw: Random, folder: Path) -> Iterator[tuple[str, str | None]]:
    """As ``try_gguf``, of a checkpoint one of whose files is changed."""
    model = folder / "model"
    changed(draw, layers(), list(layers()), model)

    def load() -> None:
        checkpoint = Checkpoint(model)
        make_plan(checkpoint)
        for name in checkpoint.names:
            checkpoint.load(name)

    yield "load", attempt(load)


def try_convert(draw: Random, folder: Path) -> Iterator[tuple[str, str | None]]:
    """As ``try_checkpoint``, of a model that can be converted, all the way."""
    model, outfile = folder / "model", folder / "out.gguf"
    files = [name for name in whole_model() if name.endswith((".json", ".safetensors"))]
    changed(draw, whole_model(), [*files, "config.json", "config.json"], model)  # headers are refused at once
    outfile.unlink(missing_ok=True)
    wrong = attempt(lambda: convert(model, outfile))
    if wrong is None:
        wrong = attempt(lambda: open_gguf(outfile).require_types())
        wrong = f"an output that is refused: {wrong}" if wrong is not None else None
    elif outfile.exists():
        wrong = f"an output after {wrong or 'a refusal'}"
    yield "convert", wrong


TRIALS = {"gguf": try_gguf, "checkpoint": try_checkpoint, "convert": try_convert}


def fuzz(of: str, seed: int, numbers: Iterable[int], folder: Path, counts: Counter[str]) -> Iterator[Finding]:
    """Try mutants of one kind of file; counts gets their number, and how often each action succeeded and refused."""
    for number in numbers:
        counts["mutants"] += 1
        for action, wrong in TRIALS[of](Random(f"{of} {seed} {number}"), folder):
            counts[f"{action}, {'refused' if wrong == '' else 'read' if wrong is None else 'wrong'}"] += 1
            if wrong:
                yield Finding(of, seed, number, f"{action}: {wrong}")


def until(end: float, numbers: Iterable[int]) -> Iterator[int]:
    """Numbers until a time of ``time.monotonic``. One that takes too long to try ends the process."""
    for number in numbers:
        if time.monotonic() > end:
            break
        faulthandler.dump_traceback_later(HANGS, exit=True)
        yield number
    faulthandler.cancel_dump_traceback_later()


def main() -> int:
    description, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="(1)")
    parser.add_argument("--minutes", type=float, default=1, metavar="N", help="for each kind of file (1)")
    parser.add_argument("--only", choices=TRIALS, help="one kind of file")
    parser.add_argument("--number", type=int, metavar="N", help="this mutant alone")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave the last mutant's files there")
    arguments = parser.parse_args()
    if arguments.keep:
        arguments.keep.mkdir(parents=True, exist_ok=True)

    llama_cpp.use_pinned_gguf()  # before anything imports another one
    found = 0
    with tempfile.TemporaryDirectory() as scratch:
        for of in [arguments.only] if arguments.only else TRIALS:
            counts: Counter[str] = Counter()
            end = time.monotonic() + 60 * arguments.minutes
            numbers = count() if arguments.number is None else [arguments.number]
            folder = arguments.keep or Path(scratch)
            for finding in fuzz(of, arguments.seed, until(end, numbers), folder, counts):
                found += 1
                print(finding)
            mutants = counts.pop("mutants")
            told = ", ".join(f"{what} {times}" for what, times in sorted(counts.items()))
            print(f"{of}: {mutants} mutants with seed {arguments.seed}: {told}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
