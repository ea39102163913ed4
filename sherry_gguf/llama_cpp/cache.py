"""The user's cache: where it is, who may write in it, and how much it keeps.

    downloads/         the sdist of the pin
    source-KEY/        a patched tree; never changes
    work-KEY/          where cmake and ninja work; changes, and makes the next build of the kind incremental
    build-KEY/         programs and libraries of one source and one configuration; only ever grows
    prebuilt-SHA256/   the same, made elsewhere (prebuilt.py)
    checkout-KEY       what was seen last of a checkout of the user's own
    last-build.json    what `sherry-gguf build` was asked for last

A directory is made under another name and renamed when it is complete, so what is there can be used.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs

from sherry_gguf.errors import SherryError
from sherry_gguf.files import system

KEPT = 6  # directories kept of each kind, the last used ones; one is 20 MB (build) to 400 MB (work)
PARTIAL = "partial-"  # names of what is not complete
FULL = (errno.ENOSPC, errno.EDQUOT)  # what writing to a full disk raises


def cache_dir() -> Path:
    """The cache directory, created: $SHERRY_GGUF_CACHE, or the platform's place for ``sherry-gguf``.

    Raises SherryError if there cannot be one. One that can only be read will do for what is in it already.
    """
    path = Path(os.environ.get("SHERRY_GGUF_CACHE") or platformdirs.user_cache_dir("sherry-gguf"))
    try:
        path = path.expanduser()
        path.mkdir(parents=True, exist_ok=True)
        return path.resolve()
    except OSError as error:
        raise _unusable(path, error.strerror) from None
    except RuntimeError as error:  # ~user without a home
        raise _unusable(path, str(error)) from None


def say(text: str) -> None:
    """Tell the user what goes on; stdout is for results."""
    print(text, file=sys.stderr, flush=True)


def key(*parts: str) -> str:
    """Sixteen hex digits that name a directory by what it was made from."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def used(path: Path) -> Path:
    """Note that a directory was used now, see keep_recent."""
    with suppress(OSError):  # a cache that somebody else keeps, or on a read-only file system
        os.utime(path)
    return path


@contextmanager
def locked() -> Iterator[Path]:
    """Hold the cache for writing, and yield its path. Another process's turn is waited for, and said.

    Raises SherryError if the cache cannot be written to, or is full.
    """
    cache = cache_dir()
    try:
        file = open(cache / "lock", "w")  # noqa: SIM115 - closed below; errors of the block are not errors of this
    except OSError as error:
        raise _unusable(cache, error.strerror) from None
    with file:
        try:
            system.lock(file.fileno(), wait=False)
        except BlockingIOError:
            say(f"waiting for another process that is building in {cache}")
            system.lock(file.fileno())
        except OSError:
            if system.HAS_LOCKS:
                raise
        for left in cache.glob(f"{PARTIAL}*"):  # by a process that was killed
            _remove(left)
        try:
            yield cache
        except OSError as error:
            if error.errno in FULL:
                raise _unusable(cache, error.strerror) from None
            raise


@contextmanager
def new_dir(path: Path) -> Iterator[Path]:
    """Yield an empty directory that becomes ``path`` if the block succeeds, and vanishes if not."""
    partial = path.with_name(PARTIAL + path.name)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def keep_recent(cache: Path) -> None:
    """Remove all but the last used directories of each kind. Needs the lock."""
    for prefix in ("source-", "work-", "build-", "prebuilt-"):
        by_age = sorted(cache.glob(f"{prefix}*"), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in by_age[KEPT:]:
            gone = old.with_name(PARTIAL + old.name)
            old.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


def _remove(path: Path) -> None:
    """Remove a file or a directory as far as possible."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _unusable(cache: Path, reason: str | None) -> SherryError:
    return SherryError(f"cannot write to the cache {cache}: {reason}; set SHERRY_GGUF_CACHE to another directory")
