"""Running models with llama-bench, one after the other and round after round."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sherry_gguf import llama_cpp
from sherry_gguf.errors import SherryError

from .models import Model

BATCHED = "llama-batched-bench"
BATCHED_PROMPT, BATCHED_TOKENS = 16, 32  # of each sequence


@dataclass(frozen=True)
class Test:
    kind: str  # pp, tg or b
    count: int

    def __str__(self) -> str:
        return f"{self.kind}{self.count}"


def parse_tests(text: str) -> list[Test]:
    tests = []
    for name in text.split(","):
        match = re.fullmatch(r"(pp|tg|b)([1-9]\d*)", name)
        if not match:
            raise SherryError(f"--tests: {name!r} is none of ppN, tgN, bN (pp256,tg64)")
        tests.append(Test(match[1], int(match[2])))
    return list(dict.fromkeys(tests))


@dataclass(frozen=True)
class Runtime:
    """Programs of llama.cpp or of a fork; options: more of its llama-bench."""

    programs: Mapping[str, Path]
    options: Sequence[str] = ()
    gpu_layers: int = 0


def programs_for(tests: list[Test]) -> set[str]:
    return {BATCHED if test.kind == "b" else "llama-bench" for test in tests}


def find_programs(build: llama_cpp.Build, wanted: set[str]) -> dict[str, Path]:
    """Raises SherryError for one that the build does not have."""
    programs = {name: build.bin_dir / name for name in sorted(wanted)}
    for name, path in programs.items():
        if not path.is_file():
            hint = f" (`sherry-gguf build --target {name}` builds it)" if build.targets else ""
            raise SherryError(f"the build has no program {name}: {path} does not exist{hint}")
    return programs


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """That many processes that never wait run meanwhile."""
    spin = [sys.executable, "-c", "while True: pass"]
    with ExitStack() as stack:
        for _ in range(processes):  # in a session of their own: Ctrl-C is for this script, which ends them
            process = subprocess.Popen(spin, stdin=subprocess.DEVNULL, start_new_session=True)
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise SherryError(f"{' '.join(command)} failed with {done.returncode}: {' '.join(last)}")
    return done.stdout


def run_model(runtime: Runtime, model: Model, tests: list[Test], threads: int) -> dict[Test, float]:
    """Tokens per second of each test, run once."""
    out: dict[Test, float] = {}
    common = ["-m", str(model.path), "-t", str(threads), "-ngl", str(runtime.gpu_layers)]
    counts = {kind: ",".join(str(test.count) for test in tests if test.kind == kind) for kind in ("pp", "tg")}
    if any(counts.values()):
        sizes = ["-p", counts["pp"] or "0", "-n", counts["tg"] or "0"]
        once = ["-r", "1", "-o", "json", *runtime.options]
        text = run([str(runtime.programs["llama-bench"]), *common, *sizes, *once])
        for row in json.loads(text):
            test = Test("pp", row["n_prompt"]) if row["n_prompt"] else Test("tg", row["n_gen"])
            out[test] = float(row["avg_ts"])
    if batches := [test.count for test in tests if test.kind == "b"]:
        # The program may end before its last line is out: one more short run, whose line nobody misses.
        sizes = ["-npp", str(BATCHED_PROMPT), "-ntg", f"{BATCHED_TOKENS},1", "-npl", ",".join(map(str, batches))]
        context = max(batches) * (BATCHED_PROMPT + BATCHED_TOKENS)
        more = ["-c", str(context), "--output-format", "jsonl"]
        text = run([str(runtime.programs[BATCHED]), *common, *sizes, *more])
        for row in (json.loads(line) for line in text.splitlines() if line.startswith("{")):
            if row["tg"] == BATCHED_TOKENS:
                out[Test("b", row["pl"])] = float(row["speed_tg"])
    if missed := [str(test) for test in tests if test not in out]:
        raise SherryError(f"no figures of {', '.join(missed)} came from {model.path.name}")
    return {test: out[test] for test in tests}


def in_turns(
    runtimes: Mapping[str, Runtime], models: list[Model], tests: list[Test], threads: int, rounds: int, beside: int = 0
) -> dict[tuple[Model, Test], list[float]]:
    """Tokens per second of each model and test, a figure for each round. beside: busy processes."""
    rates: dict[tuple[Model, Test], list[float]] = {(model, test): [] for model in models for test in tests}
    for turn in range(rounds):
        for model in models:
            print(f"round {turn + 1} of {rounds}: {model.path.name}", file=sys.stderr)
            with busy(beside):
                measurement = run_model(runtimes[model.runtime], model, tests, threads)
            for test, tok_s in measurement.items():
                rates[model, test].append(tok_s)
    return rates
