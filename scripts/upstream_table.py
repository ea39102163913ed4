#!/usr/bin/env python3
"""The patch set as a series of pull requests: what each has, its lines, its tests. docs/upstream.md has the table.

    python scripts/upstream_table.py            print the table
    python scripts/upstream_table.py --write    put it into the page

Lines are those that are added: in files that upstream has, by the hunks of patches/, and in new files, all of files/.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from sherry_gguf.llama_cpp.upstream import PatchSet

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/upstream.md"
HEAD = ("pull request", "hunks", "lines in upstream's files", "lines in new files", "tests here")


@dataclass(frozen=True)
class Step:
    """A pull request: patterns of its patches, of its new files, and of the tests that hold it."""

    what: str
    patches: tuple[str, ...]
    files: tuple[str, ...]
    tests: tuple[str, ...]


NATIVE = "tests/native/test_"
CPU = "ggml/src/ggml-cpu/sherry/"
STEPS = (
    Step(
        "1. the types: reference, `llama-quantize`, `gguf-py`",
        ("0001-*", "0003-*", "0004-*", "0005-*"),
        ("ggml/src/ggml-sherry*", "ggml/src/ggml-stq1*", "src/*"),
        (f"{NATIVE}reference.py", f"{NATIVE}stq1_reference.py", f"{NATIVE}quantize_program.py", f"{NATIVE}upstream.py"),
    ),
    Step(
        "2. the CPU, a row at a time",
        ("0002-*",),
        (f"{CPU}row*", f"{CPU}isa.h"),
        (f"{NATIVE}kernels.py", f"{NATIVE}stq1_kernels.py", f"{NATIVE}sanitizers.py", f"{NATIVE}arm.py"),
    ),
    Step(
        "3. the CPU, in tiles",
        (),
        (f"{CPU}tile*", f"{CPU}pack*", f"{CPU}buffer*", f"{CPU}mul_mat*", f"{CPU}choice*", f"{CPU}many*"),
        (f"{NATIVE}tiles.py", f"{NATIVE}operators.py", f"{NATIVE}threads.py", f"{NATIVE}choice.py", f"{NATIVE}amx.py"),
    ),
    Step("4. Metal and SYCL leave the types to the CPU", ("0007-*",), (), ("tests/llama_cpp/test_series.py",)),
    Step("5. Vulkan", ("*-vulkan*",), ("ggml/src/ggml-vulkan/*",), (f"{NATIVE}vulkan.py",)),
    Step("6. CUDA", ("*-cuda*",), ("ggml/src/ggml-cuda/*",), (f"{NATIVE}cuda.py",)),
    Step("apart: a program waits for its log", ("0008-*",), (), ("tests/test_programs.py",)),
    Step("apart: a T5 with a tied embedding", ("0012-*",), (), ("tests/models/test_t5.py",)),
    Step(
        "apart: Q8_0 in a layout for x86",
        ("0013-*",),
        ("ggml/src/ggml-cpu/repack-*",),
        (f"{NATIVE}q8_0_tiles.py",),
    ),
    Step(
        "apart: threads that wait sleep after a while",
        ("0014-*",),
        ("ggml/src/ggml-cpu/barrier-wait.h",),
        (f"{NATIVE}upstream.py",),
    ),
    Step("apart: AMX is configured by gcc 12 too", ("0015-*",), (), (f"{NATIVE}amx.py",)),
    Step("apart: backends beside libggml", ("0011-*",), (), (f"{NATIVE}variants.py",)),
    Step(
        "not for upstream: `sherry-logits`", ("0006-*",), ("tools/sherry-logits/*",), ("tests/parity/test_runtime.py",)
    ),
)


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def rows(patches: PatchSet) -> list[list[str]]:
    """The rows of the table. Raises ValueError for a part of the patch set that is in no step, or in several."""
    hunks = {patch.name: patch.read_text(encoding="utf-8") for patch in patches.series}
    new = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in patches.files()}
    places = {name: sum(matches(name, step.patches) for step in STEPS) for name in hunks}
    places |= {name: sum(matches(name, step.files) for step in STEPS) for name in new}
    for name, count in places.items():
        if count != 1:
            raise ValueError(f"{name} is in {count} steps: STEPS in {Path(__file__).name} needs it in one")
    table = []
    for step in STEPS:
        texts = [text for name, text in hunks.items() if matches(name, step.patches)]
        lines = sum(count for name, count in new.items() if matches(name, step.files))
        if texts or lines:
            count = sum(len(re.findall("^@@ ", text, re.MULTILINE)) for text in texts)
            added = sum(len(re.findall(r"^\+(?!\+\+ b/)", text, re.MULTILINE)) for text in texts)
            tests = ", ".join(f"[{Path(test).stem}](../{test})" for test in step.tests)
            table.append([step.what, *(f"{number:,}" for number in (count, added, lines)), tests])
    return table


def table(patches: PatchSet) -> str:
    """The table in Markdown."""
    lines = [HEAD, ["---"] * len(HEAD), *rows(patches)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def replaced(page: str, new: str) -> str:
    """The page with another table in place of the one that begins with HEAD."""
    pattern = re.compile(rf"^{re.escape('| ' + ' | '.join(HEAD) + ' |')}\n(\|.*\|\n)*", re.MULTILINE)
    if len(pattern.findall(page)) != 1:
        raise ValueError(f"{PAGE} has no such table, or several")
    return pattern.sub(lambda _: f"{new}\n", page)


def main() -> int:
    description, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="put the table into docs/upstream.md")
    args = parser.parse_args()
    new = table(PatchSet.load())
    if args.write:
        PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8"), new), encoding="utf-8")
    else:
        print(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
