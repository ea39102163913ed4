#!/usr/bin/env python3
"""GGUF files that end llama-completion by a signal, in code that is upstream's alone: each is made, and tried.

    python scripts/upstream_faults.py MODEL.gguf [--keep DIR]

MODEL is a file that runs, of whatever types; each fault changes one thing in it. The last one, a file of its own, ends
no program: it is seen by a compiler's -fsanitize=enum, which fuzz_native.py leaves out.
"""

from __future__ import annotations

import argparse
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from sherry_gguf import llama_cpp
from sherry_gguf.errors import SherryError
from sherry_gguf.files.gguf_file import open_gguf

SECONDS = 60
UINT32, Q8_0, Q8_0_BLOCK, NO_TYPE = 4, 8, 34, 99
NORM = "output_norm.weight"
Entries = dict[str, bytes]  # key -> its value's type and value
Tensors = dict[str, tuple[tuple[int, ...], int, bytes]]  # name -> shape, type id, data


def read(path: Path) -> tuple[Entries, Tensors]:
    file = open_gguf(path)
    entries = {
        key: struct.pack("<I", entry.type_id) + file.header.data[entry.value_start : entry.stop].tobytes()
        for key, entry in file.header.entries.items()
    }
    return entries, {t.name: (t.info.shape, t.info.type_id, t.stored.tobytes()) for t in file.tensors}


def written(entries: Entries, tensors: Tensors, alignment: int = 32) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries))
    head += b"".join(_string(key) + value for key, value in entries.items())
    data = b""
    for name, (shape, type_id, content) in tensors.items():
        head += _string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, type_id, len(data))
        data += content + bytes(-len(content) % alignment)
    return head + bytes(-len(head) % alignment) + data


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _uint32(value: int) -> bytes:
    return struct.pack("<II", UINT32, value)


def unaligned(entries: Entries, tensors: Tensors) -> bytes:
    """The weights begin at a multiple of 8 that is none of 32; where, follows from the length of a key."""
    size = sum(len(content) + -len(content) % 8 for _, _, content in tensors.values())
    files = (
        written({**entries, "general.alignment": _uint32(8), "x" * n: _uint32(0)}, tensors, 8) for n in range(1, 17)
    )
    return next(file for file in files if (len(file) - size) % 32)


def norm_of_blocks(entries: Entries, tensors: Tensors) -> bytes:
    shape, _, content = tensors[NORM]
    blocks = bytes(len(content) // 4 // 32 * Q8_0_BLOCK)
    return written(entries, {**tensors, NORM: (shape, Q8_0, blocks)})


def no_layers(entries: Entries, tensors: Tensors) -> bytes:
    return written({**entries, "llama.block_count": _uint32(0)}, tensors)


def value_of_no_type(entries: Entries, tensors: Tensors) -> bytes:
    return written({"a": struct.pack("<I", NO_TYPE)}, {})


FAULTS: dict[str, Callable[[Entries, Tensors], bytes]] = {
    "weights that do not begin at a multiple of 32 bytes": unaligned,
    "a norm in Q8_0": norm_of_blocks,
    "no layers": no_layers,
    "a value of a type that there is not": value_of_no_type,
}


def how_it_ended(program: Path, file: Path) -> str:
    command = [str(program), "-m", str(file), "-p", "a", "-n", "1", "-no-cnv", "-t", "1"]
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=environment, timeout=SECONDS)
    if done.returncode < 0:
        return f"signal {-done.returncode}"
    return "refused" if done.returncode else "runs"


def main() -> int:
    description, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, metavar="MODEL.gguf", help="of the architecture llama")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave the files there")
    arguments = parser.parse_args()
    try:
        program = llama_cpp.find_build().program("llama-completion")
        entries, tensors = read(arguments.model)
    except SherryError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for number, (fault, make) in enumerate(FAULTS.items(), 1):
            file = folder / f"{number}.gguf"
            file.write_bytes(make(entries, tensors))
            print(f"{number}. {fault}: {how_it_ended(program, file)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
