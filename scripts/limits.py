"""What the machine can do at most: bytes read from memory, products of int8. And the C loops that the benches time.

    loops = Loops(threads)
    limits(loops)  ->  {"dram_gb_s": of all threads together, "int8_gmac_s": of one core, "int8_with": instructions, ..}

The loops (loops.c, and a kernel beside them, stq1_by_block.c) are compiled for this machine with CC, or cc: calls from
Python would cost as much as a row.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from sherry_gguf.errors import SherryError

SOURCES = [Path(__file__).with_name(name) for name in ("loops.c", "stq1_by_block.c")]
MEMORY_BYTES = 512 << 20  # no cache holds a part of it that matters
INT8_TURNS = 1 << 20


class Span(ctypes.Structure):
    """span of loops.c."""

    _fields_ = (
        ("begin", ctypes.c_double),
        ("end", ctypes.c_double),
        ("ready", ctypes.POINTER(ctypes.c_int)),
        ("threads", ctypes.c_int),
    )


class Loops:
    """The compiled loops, and threads to run them in."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.compiler = os.environ.get("CC", "cc").split()
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / "loops.so"
            self._compile(library)
            self.library = ctypes.CDLL(str(library))
        self.library.int8_name.restype = ctypes.c_char_p
        self._pool = ThreadPoolExecutor(threads)

    def _compile(self, library: Path) -> None:
        error = ""
        for native in ("-march=native", "-mcpu=native"):  # compilers for Arm differ in which one they know
            command = [*self.compiler, "-O3", native, "-shared", "-fPIC", *map(str, SOURCES), "-o", str(library)]
            try:
                done = subprocess.run(command, capture_output=True, text=True)
            except OSError:
                raise SherryError(f"the C compiler {self.compiler[0]!r} does not run: install one, or set CC") from None
            if done.returncode == 0:
                return
            error = error or done.stderr.strip()
        raise SherryError(f"{SOURCES[0].name} does not compile: {error}")

    def seconds(self, name: str, parts: list[tuple[Any, ...]]) -> float:
        """Run the loop ``name`` with the arguments of each part in a thread of its own, all at once (ctypes lets go of
        Python's lock); seconds from the first one's begin to the last one's end."""
        ready = ctypes.c_int(0)
        spans = [Span(0, 0, ctypes.pointer(ready), len(parts)) for _ in parts]
        loop = getattr(self.library, name)
        list(self._pool.map(lambda span, part: loop(ctypes.byref(span), *part), spans, parts))
        first, last = min(span.begin for span in spans), max(span.end for span in spans)
        return float(last - first)


def dram_gb_s(loops: Loops, rounds: int = 8) -> float:
    """10^9 bytes per second that all threads together read, each its own part of a buffer: the best of ``rounds``."""
    quarter = MEMORY_BYTES // 8 // 4 // loops.threads
    data = np.ones((loops.threads, 4 * quarter), dtype=np.uint64)
    parts = [(ctypes.c_void_p(part.ctypes.data), ctypes.c_size_t(quarter)) for part in data]
    return data.nbytes / min(loops.seconds("read_memory", parts) for _ in range(rounds)) / 1e9


def int8_gmac_s(loops: Loops, rounds: int = 100) -> float:
    """10^9 products of int8, added up in 32 bits, per second and core while all threads are at it: the best."""
    products = INT8_TURNS * loops.library.int8_lanes()
    parts = [(INT8_TURNS,)] * loops.threads
    return float(products / min(loops.seconds("int8_products", parts) for _ in range(rounds)) / 1e9)


def limits(loops: Loops) -> dict[str, Any]:
    return {
        "dram_gb_s": dram_gb_s(loops),
        "int8_gmac_s": int8_gmac_s(loops),
        "int8_with": loops.library.int8_name().decode(),
        "threads": loops.threads,
    }


def limits_line(measured: dict[str, Any]) -> str:
    return (
        f"limits: memory {measured['dram_gb_s']:.1f} GB/s (threads: {measured['threads']}), "
        f"int8 {measured['int8_gmac_s']:.1f} GMAC/s per core ({measured['int8_with']})"
    )


def machine(loops: Loops) -> dict[str, Any]:
    """What the figures depend on and a reader of them wants to know."""
    version = subprocess.run([*loops.compiler, "--version"], capture_output=True, text=True).stdout
    return {
        "cpu": cpu_name(),
        "cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "compiler": version.partition("\n")[0],
    }


def write_figures(
    file: Path, loops: Loops, measured: dict[str, Any], results: list[dict[str, Any]], **settings: Any
) -> None:
    """Write JSON: the machine, its limits, what was measured and how."""
    figures = {"machine": machine(loops), "limits": measured, **settings, "results": results}
    file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def cpu_name() -> str:
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8", errors="replace") if info.exists() else ""
    name = re.search(r"^(?:model name|CPU part)\s*:\s*(.*)$", text, re.MULTILINE)
    return name[1] if name else platform.processor()
