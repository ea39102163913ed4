"""New files that are complete or absent: written beside the target under another name, and renamed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sherry_gguf.errors import SherryError, Way


def require_free(outfile: Path, force: bool) -> None:
    """SherryError if outfile exists and may not be replaced, or its folder does not exist."""
    if outfile.exists() and not outfile.is_dir() and not force:
        raise SherryError(f"{outfile} exists", Way.OTHER_OUTFILE, Way.REPLACE)
    if not outfile.parent.is_dir():
        raise SherryError(f"{outfile.parent} is no directory; create it", Way.OTHER_OUTFILE)


@contextmanager
def temporary_beside(target: Path) -> Iterator[Path]:
    """A new file in target's directory, removed unless it was renamed."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    except OSError as error:
        raise SherryError(f"{target.parent}: cannot write there, {error.strerror}", Way.OTHER_OUTFILE) from error
    os.close(handle)
    # mkstemp makes files that only their owner may read; a model gets what any new file would get
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(name, 0o666 & ~umask)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def rename_durably(temporary: Path, target: Path) -> None:
    """Put the new file in target's place at once: whenever the machine stops, there is the old or the new one."""
    _sync(temporary)
    os.replace(temporary, target)
    with suppress(OSError):  # not every file system can do this for a directory, and the file is there
        _sync(target.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
