"""What systems do in different ways: locks, owners, links. The one place for calls that Windows does not have.

Windows is untried; there a lock is one that the file system does not have, and a link is a copy.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

HAS_LOCKS = fcntl is not None
# flags of os.open: for this process alone
PRIVATE = getattr(os, "O_CLOEXEC", 0)
# for a file that is written to the disk: Windows wants it writable
SYNCED = os.O_RDONLY if HAS_LOCKS else os.O_RDWR
# not through a link, and not waiting for the writer of a pipe
PLAIN = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


def lock(handle: int, wait: bool = True) -> None:
    """Lock an open file for this process alone. Raises BlockingIOError if it is another's, and wait is false; OSError
    where there are no locks."""
    if fcntl is None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def set_owner(path: Path, like: os.stat_result) -> None:
    """Give a file the owner and group of another, where a file has such. Raises PermissionError."""
    if hasattr(os, "chown"):
        os.chown(path, like.st_uid, like.st_gid)


def name_also(path: Path, name: Path) -> None:
    """Give a file or directory another name: a symbolic link, or a copy where there may be none."""
    try:
        name.symlink_to(os.path.abspath(path), target_is_directory=path.is_dir())
    except OSError:
        if path.is_dir():
            shutil.copytree(path, name)
        else:
            shutil.copyfile(path, name)
