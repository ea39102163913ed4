"""New files that are complete or absent: written beside the target under another name, and renamed.

The rule of all outputs: a symbolic link is followed, and stays; a regular file is replaced if that is allowed, and
keeps its permissions; whatever else is there, and what is read as an input, is never replaced.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sherry_gguf.checkpoint.regular import not_regular
from sherry_gguf.errors import SherryError, Way
from sherry_gguf.files import system

_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


def require_free(outfile: Path, force: bool, inputs: Iterable[Path] = ()) -> None:
    """SherryError if outfile may not be written: what is there may not be replaced, or its folder does not exist."""
    found = _regular(outfile)
    if found is None:
        if not outfile.parent.is_dir():
            raise SherryError(f"{outfile.parent} is no directory; create it", Way.OTHER_OUTFILE)
        return
    for path in inputs:
        with suppress(OSError):  # an input that cannot be read is said where it is read
            if os.path.samestat(found, path.stat()):
                raise SherryError(f"{outfile} is an input, and would be replaced", Way.OTHER_OUTFILE)
    if not force:
        raise _exists(outfile)


@contextmanager
def temporary_beside(target: Path) -> Iterator[Path]:
    """A new file in target's directory, or in that of the file it links to; removed unless it was renamed.

    Those of runs that were killed are removed first. A full disk is said of the directory.
    """
    target = _followed(target)
    _remove_abandoned(target)
    # named before it is there, so that it is removed even if a signal comes while it is made
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    handle = None
    try:
        try:
            handle = _new_locked(temporary)
            if not system.HAS_LOCKS:  # it would only keep the file from being renamed
                os.close(handle)
                handle = None
        except OSError as error:
            raise SherryError(f"{target.parent}: cannot write there, {error.strerror}", Way.OTHER_OUTFILE) from error
        with naming_full_disk(target):
            yield temporary
    finally:
        with suppress(OSError):  # it was renamed, or never made
            temporary.unlink()
        if handle is not None:
            os.close(handle)


@contextmanager
def naming_full_disk(target: Path) -> Iterator[None]:
    """SherryError of target's directory where something inside could not be written because there is no room."""
    try:
        yield
    except OSError as error:
        # numpy's tofile has no number for it, and says how much of the array it wrote
        short = error.errno is None and str(error).endswith(" written")
        if error.errno not in _FULL and not short:
            raise
        said = error.strerror or "the disk may be full"
        raise SherryError(f"{_followed(target).parent}: cannot write all of it there, {said}", Way.OTHER_OUTFILE) from (
            error
        )


def rename_durably(temporary: Path, target: Path, force: bool) -> None:
    """Put the new file in target's place at once: whenever the machine stops, there is the old or the new one.

    force: replace what is there. Without it SherryError, also for a file that came while the new one was written.
    """
    found = _regular(target)
    if found is not None and not force:
        raise _exists(target)
    _set_permissions(temporary, found)
    _sync(temporary)
    place = _followed(target)
    if force:
        os.replace(temporary, place)
    else:
        _move_to_free(temporary, place)
    with suppress(OSError):  # not every file system can do this for a directory, and the file is there
        _sync(place.parent)


def _exists(outfile: Path) -> SherryError:
    return SherryError(f"{outfile} exists", Way.OTHER_OUTFILE, Way.REPLACE)


def _regular(target: Path) -> os.stat_result | None:
    """The file that is there, links followed; None if there is nothing. SherryError for what is no regular file."""
    try:
        found = target.stat()
    except (FileNotFoundError, NotADirectoryError):
        if target.is_symlink():
            raise SherryError(f"{target} is a symbolic link to no file", Way.OTHER_OUTFILE) from None
        return None
    except OSError as error:
        raise SherryError(f"{target}: cannot be written, {error.strerror}", Way.OTHER_OUTFILE) from error
    if (what := not_regular(found.st_mode)) is not None:
        raise SherryError(f"{target} is {what}, no regular file", Way.OTHER_OUTFILE)
    return found


def _followed(target: Path) -> Path:
    return target.resolve() if target.is_symlink() else target


def _new_locked(temporary: Path) -> int:
    """Make the file with the lock that tells other runs that its writer is alive. Only its owner may read it as yet."""
    while True:
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | system.PRIVATE, 0o600)
        with suppress(OSError):  # without locks there, nobody takes it for abandoned either
            system.lock(handle)
        if os.fstat(handle).st_nlink:
            return handle
        os.close(handle)  # another run took it for abandoned before it was locked


def _remove_abandoned(target: Path) -> None:
    """Remove temporary files of this target whose writers were killed: nobody has their lock."""
    ours = re.compile(re.escape(f".{target.name}.") + r"[a-z0-9_]{8}\.part")
    with suppress(OSError):  # a directory that cannot be listed may still take a file
        for path in target.parent.iterdir():
            if ours.fullmatch(path.name) and not path.is_symlink() and path.is_file():
                _remove_unlocked(path)


def _remove_unlocked(path: Path) -> None:
    with suppress(OSError):  # locked, without locks, gone meanwhile, or of someone else
        handle = os.open(path, os.O_RDWR | system.PLAIN)
        try:
            system.lock(handle, wait=False)
            path.unlink()
        finally:
            os.close(handle)


def _set_permissions(temporary: Path, replaced: os.stat_result | None) -> None:
    """Those of the file that is replaced, or what any new file would get."""
    if replaced is None:
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        return
    with suppress(PermissionError):  # a file of someone else's becomes ours, as with any editor
        system.set_owner(temporary, replaced)
    temporary.chmod(stat.S_IMODE(replaced.st_mode))


def _move_to_free(temporary: Path, place: Path) -> None:
    """Give the file its name, SherryError if another one has it by now."""
    try:
        try:
            os.link(temporary, place)
            temporary.unlink()
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links: an empty file holds the place for a moment
            os.close(os.open(place, os.O_CREAT | os.O_EXCL, 0o600))
            os.replace(temporary, place)
    except FileExistsError:
        raise _exists(place) from None


def _sync(path: Path) -> None:
    handle = os.open(path, system.SYNCED)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
