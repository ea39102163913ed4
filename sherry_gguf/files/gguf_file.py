"""Opening a GGUF file: its header, and its tensors with the types that they really have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sherry_gguf.errors import SherryError
from sherry_gguf.files.header import Header, read_header
from sherry_gguf.files.identify import find_types
from sherry_gguf.files.tensor import FileTensor


@dataclass(frozen=True)
class GgufFile:
    """header; tensors in the order of the file."""

    header: Header
    tensors: Sequence[FileTensor]

    @property
    def path(self) -> Path:
        return self.header.path

    def value(self, key: str) -> Any:
        """A scalar or string of the metadata; None if there is no such entry, or it is an array."""
        return self.header.value(key)

    def require_types(self) -> None:
        """Raise SherryError for the first tensor with a problem."""
        for tensor in self.tensors:
            if tensor.problem:
                raise SherryError(f"{tensor.place}: {tensor.problem}")


def open_gguf(path: Path) -> GgufFile:
    """Raises SherryError for what is no GGUF file, a damaged one, or one of a newer sherry.format_version.

    A type that cannot be told is a tensor's ``problem`` instead.
    """
    header = read_header(path)
    return GgufFile(header, find_types(header))
