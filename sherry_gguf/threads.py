"""Parts of a matrix in several threads: NumPy and PyTorch let go of Python's lock while they compute."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import numpy as np

T = TypeVar("T")

# Weights. Smaller parts stay in the L2 cache, but their threads wait for Python's lock more than they work: two threads
# converted a model in 23.6 s with 2**16 and in 16.0 with 2**19, one in 18.5 (Emerald Rapids, 2026-11-27).
_PART = 1 << 19
_MOST = 8  # by default: more wait for memory, and for each other

_its = threading.local()  # pool: that of the thread which asked for one; the pool's own threads have none


def processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def threads(count: int | None = None) -> Iterator[None]:
    """Let ``in_parts`` of this thread use so many meanwhile; by default one for each processor, and 8 at most."""
    count = min(processors(), _MOST) if count is None else count
    before: ThreadPoolExecutor | None = getattr(_its, "pool", None)
    with nullcontext() if count == 1 else ThreadPoolExecutor(count) as _its.pool:
        try:
            yield
        finally:
            _its.pool = before


def rows_of(row_length: int) -> int:
    """How many rows are handled at a time: few for the caches, and enough to keep a thread at work."""
    return max(1, _PART // max(1, row_length))


def in_parts(work: Callable[[int, int], T], length: int, step: int) -> list[T]:
    """work(start, stop) of all parts of range(length), each of ``step`` at most. The results are in order.

    Of several errors that of the first part is raised, whoever was faster. NumPy's handling of errors is the caller's.
    """
    parts = [(start, min(start + step, length)) for start in range(0, length, step)]
    pool: ThreadPoolExecutor | None = getattr(_its, "pool", None)
    if pool is None or len(parts) < 2:
        return [work(*part) for part in parts]
    handling = np.geterr()

    def work_alike(part: tuple[int, int]) -> T:
        with np.errstate(**handling):
            return work(*part)

    return list(pool.map(work_alike, parts))
