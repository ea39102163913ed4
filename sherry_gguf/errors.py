"""The one exception of this package for bad input."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class SherryError(ValueError):
    """Something given to sherry-gguf cannot be used as it is.

    The message is one line for a person: what was seen (file, tensor, row, group), and the way out.
    Command lines print it without a traceback and exit with status 1.
    """


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Prefix the message of a SherryError raised inside with the file or tensor it is about."""
    try:
        yield
    except SherryError as error:
        raise SherryError(f"{what}: {error}") from error
