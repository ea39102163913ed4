"""A library's function for a while another, where the library offers no other way to change what it does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """While the context is open, an attribute of a module or class is ``value``. It counts in every thread.

    A class that only inherits the attribute inherits it again afterwards.
    """
    own, original = name in vars(owner), vars(owner).get(name)  # not getattr, which would bind a classmethod
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, original)
        else:
            delattr(owner, name)
