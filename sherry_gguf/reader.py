"""Opens GGUF files that may hold SHERRY tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sherry_gguf.errors import SherryError
from sherry_gguf.format import VERSION, VERSION_KEY


def open_gguf(path: Path) -> Any:
    """A ``gguf.GGUFReader``, of whichever gguf-py is imported.

    Raises SherryError for a file that is no GGUF, is damaged, or whose sherry.format_version is larger than this
    package knows: its blocks may mean something else.
    """
    import gguf

    try:
        reader = gguf.GGUFReader(path)
    except (OSError, ValueError, IndexError, KeyError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise SherryError(f"{path}: cannot be read as a GGUF file, {said}") from error
    field = reader.get_field(VERSION_KEY)
    version = VERSION if field is None else field.contents()
    if version > VERSION:
        raise SherryError(
            f"{path}: {VERSION_KEY} is {version}, this sherry-gguf reads version {VERSION}; install a newer one"
        )
    return reader
