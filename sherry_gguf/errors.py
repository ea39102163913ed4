"""The one exception of this package for bad input."""

from __future__ import annotations


class SherryError(ValueError):
    """Something given to sherry-gguf cannot be used as it is.

    The message is one line for a person: what was seen (file, tensor, row, group), and the way out.
    Command lines print it without a traceback and exit with status 1.
    """
