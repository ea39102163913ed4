"""Files of a checkpoint, which is data from elsewhere: reading a FIFO or a device might never end."""

from __future__ import annotations

import stat
from pathlib import Path

from sherry_gguf.errors import SherryError

_OTHERS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def not_regular(mode: int) -> str | None:
    """What there is instead of a regular file, by its ``st_mode``; None for a regular file."""
    return None if stat.S_ISREG(mode) else _OTHERS.get(stat.S_IFMT(mode), "something else")


def is_file(path: Path) -> bool:
    """Whether there is a file to read, links followed. Raises SherryError for what is there and no regular file."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:  # no rights; a name that no file can have
        raise SherryError(f"{str(path)!r}: cannot be read, {error}") from error
    if (what := not_regular(mode)) is not None:
        raise SherryError(f"{path}: is {what}, and only regular files are read")
    return True


_READ_BELOW = "additional_chat_templates"  # the one subfolder of a model that transformers reads


def require_files(directory: Path) -> None:
    """Raise SherryError for a FIFO or a device in the directory: libraries open what is named like a file of theirs."""
    try:
        found = sorted([*directory.iterdir(), *(directory / _READ_BELOW).glob("*")])
    except OSError as error:
        raise SherryError(f"{directory}: cannot be read, {error.strerror}") from error
    for path in found:
        if not path.is_dir() and not path.is_socket():
            is_file(path)
