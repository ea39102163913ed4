#!/usr/bin/env python3
"""What our converter and upstream's do with each fault of ``faults.py``, as a table for docs/reliability.md.

    python scripts/fault_table.py [--model DIR] [--only REGEX] [--kills 10] [--json FILE]

Ours is `sherry-gguf convert`; upstream's is convert_hf_to_gguf.py and then llama-quantize to Q8_0, of the pinned
llama.cpp. Each gets a copy of the model, of which two layers are kept, and finds an older file where each of its
outputs goes. Several run at the same time. Needs Linux, and a build (`sherry-gguf build`).

stopped               by SIGINT or SIGTERM, with or without a traceback
refused               a status that is not 0, some words, no traceback
late refusal          the same, by llama-quantize, of a file that the converter wrote
traceback             a status that is not 0, and a traceback
killed by SIG..       by the system
hangs                 was ended after 100 seconds
bad output            status 0, and a file that is not the whole model's
right                 status 0, and that file
.., old file lost     the older output is gone, and no whole one is in its place
.., old file replaced the older output is gone, and nobody asked for that
.., input lost        the weights are not what they were
.., files left        something is beside the outputs that was not there
.., code executed     the input made a file
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from faults import CONFIGURATION, LIMITS, OLD, OUTPUTS, SINGLE, WEIGHTS, Fault, Place, new_place, small_model

from sherry_gguf import llama_cpp

LONGEST = 100  # seconds, of which a conversion takes ten on a busy machine
TWO = "two at once, and no older output"
STOPPED = (-signal.SIGINT, -signal.SIGTERM, 130, 143)

llama_cpp.use_pinned_gguf()
import gguf  # noqa: E402


@dataclass(frozen=True)
class Program:
    """A command, and the file that it writes."""

    command: Sequence[str | Path]
    output: Path


@dataclass
class Ended:
    """How a program ended. status None: it did not within LONGEST. number: which of the programs it was."""

    status: int | None
    said: str
    number: int = 0


Around = Callable[[Place, Program], Ended]


@dataclass(frozen=True)
class Tool:
    """programs: run one after the other."""

    name: str
    programs: Callable[[Place], list[Program]]


def ours(place: Place) -> list[Program]:
    arguments: list[str | Path] = [place.model, "--outfile", place.outfile, *place.flags]
    return [Program([sys.executable, "-m", "sherry_gguf", "convert", *arguments], place.outfile)]


def upstreams(place: Place) -> list[Program]:
    converter = llama_cpp.find_source() / "convert_hf_to_gguf.py"
    quantize = llama_cpp.find_build().program("llama-quantize")
    wide, narrow = place.outfile, place.outfile.with_name("q8_0.gguf")
    return [
        Program([sys.executable, converter, place.model, "--outfile", wide, "--outtype", "f16"], wide),
        Program([quantize, wide, narrow, "Q8_0"], narrow),
    ]


TOOLS = [Tool("sherry-gguf", ours), Tool("upstream", upstreams)]


# Around a program


def start(place: Place, command: Sequence[str | Path]) -> subprocess.Popen[str]:
    def limit() -> None:
        for name, size in place.limits.items():
            resource.setrlimit(name, (size, size))

    return subprocess.Popen(
        list(map(str, command)),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        preexec_fn=limit,
    )  # fmt: skip


def wait(process: subprocess.Popen[str]) -> Ended:
    try:
        said, _ = process.communicate(timeout=LONGEST)
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
        return Ended(None, said)
    return Ended(process.returncode, said)


def undisturbed(place: Place, program: Program) -> Ended:
    return wait(start(place, program.command))


def always(around: Around) -> Callable[[float], Around]:
    return lambda _: around


def stopped(number: int, moment: float, seconds: float) -> Around:
    def around(place: Place, program: Program) -> Ended:
        process = start(place, program.command)
        time.sleep(moment * seconds)
        process.send_signal(number)
        return wait(process)

    return around


def shortened(place: Place, program: Program) -> Ended:
    """The weights become shorter once something is written."""
    before = [path.stat() for path in sorted(place.outfile.parent.iterdir())]
    process = start(place, program.command)
    while process.poll() is None and before == [path.stat() for path in sorted(place.outfile.parent.iterdir())]:
        time.sleep(0.0005)
    process.send_signal(signal.SIGSTOP)
    os.truncate(place.model / SINGLE, 20_000)
    process.send_signal(signal.SIGCONT)
    return wait(process)


def twice(place: Place, program: Program) -> Ended:
    """Run the program twice at once, and return what was refused, or one of two that succeeded."""
    both = [start(place, program.command) for _ in range(2)]
    ended = [wait(process) for process in both]
    refused = [one for one in ended if one.status != 0]
    return refused[0] if refused else ended[0]


def on_disk(options: str, mode: str) -> Around:
    """The folder of the outputs is a disk of its own while the program runs."""

    def around(place: Place, program: Program) -> Ended:
        script = (
            f"cp -a . ../kept; mount -t tmpfs -o {options} none $PWD; cd $PWD; cp ../kept/* .; "
            f'mount -o remount,{mode} $PWD; status=0; "$@" || status=$?; '
            "rm ../kept/*; cp -a . ../kept; exit $status"
        )
        mounting: list[str | Path] = ["unshare", "--mount", "--user", "--map-root-user", "--wd", place.outfile.parent]
        ended = wait(start(place, [*mounting, "bash", "-euc", script, "bash", *program.command]))
        kept = place.outfile.parent.parent / "kept"
        for path in place.outfile.parent.iterdir():
            path.unlink()
        for path in kept.iterdir():
            path.rename(place.outfile.parent / path.name)
        return ended

    return around


# What came of it


def contents(path: Path) -> dict[str, Any] | None:
    """What a GGUF file says and holds; None for one that cannot be read."""
    try:
        reader = gguf.GGUFReader(path)
        found = {name: field.contents() for name, field in reader.fields.items()}
        return found | {tensor.name: (tensor.tensor_type, tensor.data.tobytes()) for tensor in reader.tensors}
    except Exception:  # whatever a reader makes of a bad file
        return None


@dataclass
class Bench:
    """A tool, with what it makes of a whole model: its files, the memory that each program takes, and the time."""

    tool: Tool
    model: Path
    whole: list[dict[str, Any] | None] = field(default_factory=list)
    memory: list[dict[int, int]] = field(default_factory=list)
    seconds: float = 0

    def measure(self, folder: Path) -> None:
        place = new_place(self.model, folder)
        begin = time.monotonic()
        for program in self.tool.programs(place):
            process = start(place, program.command)
            taken = {resource.RLIMIT_AS: 0, resource.RLIMIT_DATA: 0}
            while process.poll() is None:
                for limit, now in memory_of(process.pid).items():
                    taken[limit] = max(taken[limit], now)
                time.sleep(0.005)
            assert process.returncode == 0, wait(process).said
            process.communicate()
            self.memory.append(taken)
            self.whole.append(contents(program.output))
            if not self.seconds:
                self.seconds = time.monotonic() - begin

    def words(self, fault: Fault, around: Around, folder: Path) -> tuple[list[str], str]:
        """What came of it, and what was said at last."""
        place = new_place(self.model, folder)
        fault.make(place)
        programs = self.tool.programs(place)
        for program in programs[1:]:
            if program.output.parent.is_dir():
                program.output.write_bytes(OLD)
        before = {
            path: path.read_bytes() if path.is_file() else None
            for path in place.outfile.parent.glob("*")
        }  # fmt: skip
        ended = self._convert(programs, place, around)
        output = programs[ended.number].output
        is_whole = output.is_file() and contents(output) == self.whole[ended.number]
        words = [outcome(ended, is_whole)]
        old = before.get(output)
        if old is not None and (not output.is_file() or output.read_bytes() != old):
            if place.outfile.parent == place.model:
                words.append("input lost")
            elif ended.status and not is_whole:
                words.append("old file lost")
            elif ended.status == 0 and fault.name.startswith("an output is there"):
                words.append("old file replaced")
        if ended.status == 0 and fault.name == TWO:
            words.append("both say they wrote it")
        left = {*place.outfile.parent.glob("*")} - before.keys()
        if left - {program.output for program in programs} or (output in left and not is_whole):
            words.append("files left")
        if place.canary.exists():
            words.append("code executed")
        said = [line for line in ended.said.splitlines() if line.strip()]
        return words, said[-1] if said else ""

    def _convert(self, programs: list[Program], place: Place, around: Around) -> Ended:
        for number, program in enumerate(programs):
            limits = {name: size + self.memory[number].get(name, 0) for name, size in place.limits.items()}
            ended = around(replace(place, limits=limits), program)
            ended.number = number
            if ended.status != 0:
                break
        return ended


def memory_of(process: int) -> dict[int, int]:
    try:
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
        names = {resource.RLIMIT_AS: "VmSize", resource.RLIMIT_DATA: "VmData"}
        return {limit: 1024 * int(lines[name].split()[0]) for limit, name in names.items()}
    except (OSError, KeyError, ValueError):  # it ended
        return {}


def outcome(ended: Ended, is_whole: bool) -> str:
    if ended.status is None:
        return "hangs"
    if ended.status in STOPPED:
        return "stopped"
    if ended.status < 0:
        return f"killed by {signal.Signals(-ended.status).name}"
    if ended.status:
        if "Traceback (most" in ended.said:
            return "traceback"
        return "late refusal" if ended.number else "refused"
    return "right" if is_whole else "bad output"


def whole(_: Place) -> None:
    """Leave the input as it is: what goes wrong happens around the program."""


def no_output(place: Place) -> None:
    place.outfile.unlink()
    place.flags.clear()


def cases(kills: int) -> Iterator[tuple[Fault, list[Callable[[float], Around]]]]:
    """Each fault with what happens around each of its conversions, which take so many seconds undisturbed."""
    draw = random.Random(14)
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):
        moments = [(i + draw.random()) / kills for i in range(kills)]
        yield Fault(f"{number.name} at {kills} moments", whole, None), [partial(stopped, number, m) for m in moments]
    for fault in OUTPUTS:
        yield fault, [always(undisturbed)]
    yield Fault(TWO, no_output, None), [always(twice)]
    disks = (("small", "size=600k", "rw"), ("full", "size=64k", "rw"), ("read-only", "size=1m", "ro"))
    for name, options, mode in disks:
        yield Fault(f"a {name} disk", whole, None), [always(on_disk(options, mode))]
    for fault in (*LIMITS, *WEIGHTS):
        yield fault, [always(undisturbed)]
    yield Fault("the file is truncated while it is read", whole, None), [always(shortened)]
    for fault in CONFIGURATION:
        yield fault, [always(undisturbed)]


def told(several: list[list[str]]) -> str:
    """The words of a conversion; where there were several, how often each word was said."""
    if len(several) == 1:
        return ", ".join(several[0])
    counts = Counter(word for words in several for word in words)
    return ", ".join(f"{word} {count}" for word, count in counts.most_common())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parents[1]
    parser.add_argument("--model", type=Path, default=root / "tests" / "data" / "angelslim-tiny-g128")
    parser.add_argument("--only", default="", help="regex of the faults' names")
    parser.add_argument("--kills", type=int, default=10, help="moments of each signal (default %(default)s)")
    names = [tool.name for tool in TOOLS]
    parser.add_argument("--tools", nargs="+", choices=names, default=names)
    parser.add_argument("--jobs", type=int, default=2, help="conversions at a time (default %(default)s)")
    parser.add_argument("--json", type=Path, help="also what was said at last, to this file")
    args = parser.parse_args()

    rows = []
    with tempfile.TemporaryDirectory(prefix="sherry-faults-") as name, ThreadPoolExecutor(args.jobs) as pool:
        folder = Path(name)
        model = small_model(args.model, folder / "whole")
        benches = [Bench(tool, model) for tool in TOOLS if tool.name in args.tools]
        numbers = count()

        def new_folder() -> Path:
            path = folder / str(next(numbers))
            path.mkdir()
            return path

        list(pool.map(Bench.measure, benches, [new_folder() for _ in benches]))
        print(
            "| fault | " + " | ".join(bench.tool.name for bench in benches) + " |\n|---|" + "---|" * len(benches),
            flush=True,
        )
        started = [
            (fault, [[pool.submit(bench.words, fault, around(bench.seconds), new_folder()) for around in arounds]
                     for bench in benches])
            for fault, arounds in cases(args.kills)
            if re.search(args.only, fault.name)
        ]  # fmt: skip
        for fault, conversions in started:
            found = [[one.result() for one in each] for each in conversions]
            print(f"| {fault.name} | " + " | ".join(told([w for w, _ in each]) for each in found) + " |", flush=True)
            rows.append({"fault": fault.name} | {b.tool.name: each for b, each in zip(benches, found, strict=True)})
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
