"""The files of one model: a single one, or parts of a size, which get their names together or not at all."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from sherry_gguf.errors import SherryError
from sherry_gguf.files.outfile import rename_durably, temporary_beside

_UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3}


def parse_size(text: str) -> int:
    """``500M`` -> bytes, in the syntax of llama.cpp's converter; SherryError for anything else."""
    found = re.fullmatch(r"(\d+)([KMG]?)", text)
    if found is None or int(found[1]) == 0:
        raise SherryError(f"{text!r} is no size of a part: a positive number, with K, M or G for powers of 1000")
    return int(found[1]) * _UNITS[found[2]]


@contextmanager
def temporaries_beside(targets: Sequence[Path]) -> Iterator[list[Path]]:
    """``temporary_beside`` of each target: all are removed unless they were renamed."""
    with ExitStack() as stack:
        yield [stack.enter_context(temporary_beside(target)) for target in targets]


def rename_all(temporaries: Sequence[Path], targets: Sequence[Path], force: bool) -> None:
    """Put the new files in their targets' places, the first part last, as a model is loaded by its name.

    Where one cannot be renamed, those before it that replaced nothing are removed again.
    """
    new: list[Path] = []
    try:
        for temporary, target in reversed(list(zip(temporaries, targets, strict=True))):
            is_new = not target.exists()
            rename_durably(temporary, target, force)
            if is_new:
                new.append(target)
    except BaseException:
        for target in new:
            with suppress(OSError):
                target.unlink()
        raise
