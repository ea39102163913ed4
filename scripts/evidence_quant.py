#!/usr/bin/env python3
"""What llama.cpp asks of a new type: perplexity and KL divergence beside other types, and the speed of each in one run.

    python scripts/evidence_quant.py WORK [--model DIR ...] [--plain DIR ...] [--types A,B,..] [--chunks 20]

A model is a checkpoint trained as Sherry, the shipped ones if none is named: all types are compared with its weights
in F16, the ones that Sherry's blocks hold. A plain one was not trained so, and Sherry's types destroy it; without
--plain a float twin of the demo model is trained, which takes an hour of a core. Each file is llama-quantize's own, of
the F16 file, every matrix in the one type but for embeddings and output, which stay F16; llama-perplexity compares on
tests/data/sotu-heldout.txt. Speeds are those of bench_llama.py, of random weights in the shape of a real
model. What is finished is kept in WORK: the files in F16 and SHERRY are the samples.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from bench.flags import TYPES, parse_types
from evidence.divergence import Scores, scores

from sherry_gguf import llama_cpp
from sherry_gguf.errors import SherryError

ROOT = Path(__file__).parents[1]
HELD_OUT = ROOT / "tests/data/sotu-heldout.txt"
SHIPPED = (ROOT / "tests/data/sotu-sherry", ROOT / "tests/data/angelslim-tiny-g128")
CHOSEN = ("Q8_0", "Q4_0", "Q2_K", "Q2_0", "TQ2_0", "TQ1_0", "SHERRY", "STQ1_0", "Q1_0")
SPEEDS = "pp256,tg64"


class Files:
    """A model's file in F16, and in each type, made when they are asked for."""

    def __init__(self, build: llama_cpp.Build, checkpoint: Path, plain: bool, folder: Path) -> None:
        self.build, self.checkpoint, self.plain, self.folder = build, checkpoint, plain, folder
        folder.mkdir(parents=True, exist_ok=True)

    def f16(self) -> Path:
        file = self.folder / f"{self.checkpoint.name}-F16.gguf"
        if not file.is_file():
            partial = file.with_suffix(".partial")
            if self.plain:
                convert = llama_cpp.find_source() / "convert_hf_to_gguf.py"
                call(sys.executable, convert, self.checkpoint, "--outtype", "f16", "--outfile", partial)
            else:
                ternary = self.folder / f"{self.checkpoint.name}-converted.gguf"
                heads = ["--token-embedding-type", "f16", "--output-tensor-type", "f16", "--force"]
                call(sys.executable, "-m", "sherry_gguf", "convert", self.checkpoint, "--outfile", ternary, *heads)
                call(self.build.program("llama-quantize"), "--allow-requantize", "--pure", ternary, partial, "F16")
            partial.replace(file)
        return file

    def of(self, name: str) -> Path:
        file = self.folder / f"{self.checkpoint.name}-{name}.gguf"
        if not file.is_file():
            source, partial = self.f16(), file.with_suffix(".partial")
            heads = ["--token-embedding-type", "f16", "--output-tensor-type", "f16"]
            call(self.build.program("llama-quantize"), "--pure", *heads, source, partial, name)
            partial.replace(file)
        return file

    def scores(self, name: str, chunks: int) -> Scores:
        """Of a type, beside F16."""
        base = self.folder / f"{self.checkpoint.name}-{chunks}-chunks.logits"
        program, text = self.build.program("llama-perplexity"), ("-f", HELD_OUT, "-c", 512, "--chunks", chunks)
        if not base.is_file():
            partial = base.with_suffix(".partial")
            call(program, "-m", self.f16(), *text, "--save-all-logits", partial)
            partial.replace(base)
        said = call(program, "-m", self.of(name), "--kl-divergence-base", base, "--kl-divergence")
        try:
            return scores(said)
        except SherryError as error:
            raise SherryError(f"{self.of(name)}: {error}") from None


def call(*command: object) -> str:
    """Run a program, and return all that it prints."""
    done = subprocess.run([str(part) for part in command], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise SherryError(f"{command[0]} failed with status {done.returncode}: {done.stderr[-500:]}")
    return done.stdout + done.stderr


def speeds(types: list[str], shape: str, rounds: int, work: Path) -> dict[tuple[str, str], float]:
    """(type, test) -> tokens a second, all in one run; (type, "bits") -> bits per weight of the linear layers."""
    figures = work / "speed.json"
    flags = ["--shape", shape, "--types", ",".join(types), "--tests", SPEEDS, "--rounds", rounds, "--json", figures]
    call(sys.executable, ROOT / "scripts/bench_llama.py", *flags)
    results = json.loads(figures.read_text(encoding="utf-8"))["results"]
    rates = {(row["type"], row["test"]): row["tok_s"] for row in results}
    return rates | {(row["type"], "bits"): row["bpw"] for row in results}


def train_plain(work: Path) -> Path:
    """The demo model's shape, text and training, in float."""
    directory = work / "plain" / "demo"
    if not (directory / "model.safetensors").is_file():
        call(sys.executable, ROOT / "scripts/train_demo.py", "--work", directory.parent, "--method", "float")
    return directory


def main() -> int:
    description, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, metavar="WORK")
    parser.add_argument("--model", type=Path, action="append", metavar="DIR", help="trained as Sherry")
    parser.add_argument("--plain", type=Path, action="append", metavar="DIR", help="not trained as Sherry")
    parser.add_argument("--types", default=",".join(CHOSEN), metavar="A,B,..", help=f"of {','.join(TYPES)}")
    parser.add_argument("--chunks", type=int, default=20, metavar="N", help="of 512 tokens (20)")
    parser.add_argument("--shape", default="1b", help="of the models that are timed (1b)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="in which they take turns (3)")
    args = parser.parse_args()
    try:
        args.work.mkdir(parents=True, exist_ok=True)
        build, types = llama_cpp.build(), parse_types(args.types)
        plain = args.plain or [train_plain(args.work)]
        models = [(path, False) for path in args.model or SHIPPED] + [(path, True) for path in plain]
        rates = speeds(types, args.shape, args.rounds, args.work)
        for checkpoint, is_plain in models:
            files = Files(build, checkpoint, is_plain, args.work / ("plain-files" if is_plain else "files"))
            trained = "not trained as Sherry" if is_plain else "trained as Sherry"
            print(f"| {checkpoint.name}, {trained} | perplexity | mean KLD | 99.9% KLD | same top-1 % |")
            print("|---|---|---|---|---|", flush=True)
            for name in types:
                found = files.scores(name, args.chunks)
                figures = f"{found.perplexity:.4f} | {found.divergence:.6f} | {found.tail:.4f} | {found.top:.2f}"
                print(f"| {name} | {figures} |", flush=True)
            print()
        tests = SPEEDS.split(",")
        print(f"| {args.shape} | bits per weight | {' | '.join(tests)} |\n|---|---|{'---|' * len(tests)}")
        for name in types:
            print(
                f"| {name} | {rates[name, 'bits']:.4g} | {' | '.join(f'{rates[name, test]:.3g}' for test in tests)} |"
            )
    except SherryError as error:
        print(f"evidence_quant.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
