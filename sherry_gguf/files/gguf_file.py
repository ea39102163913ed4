"""Opening a GGUF file: its header, and its tensors with the types that they really have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sherry_gguf.errors import SherryError, Way, naming
from sherry_gguf.files.header import Header, read_header
from sherry_gguf.files.identify import find_types
from sherry_gguf.files.tensor import FileTensor

_PART_NO, _PART_COUNT = "split.no", "split.count"


@dataclass(frozen=True)
class Part:
    """One file of a model that was split into ``count``; number: from 1, as in the names of such files."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"part {self.number} of {self.count}"


@dataclass(frozen=True)
class GgufFile:
    """header; tensors in the order of the file; part: None for a whole model."""

    header: Header
    tensors: Sequence[FileTensor]
    part: Part | None

    @property
    def path(self) -> Path:
        return self.header.path

    def value(self, key: str) -> Any:
        """A scalar or string of the metadata; None if there is no such entry, or it is an array."""
        return self.header.value(key)

    def require_whole(self) -> None:
        """Raise SherryError for a part of a split model: the others would not fit what is made of it."""
        if self.part:
            raise SherryError(f"{self.path}: is {self.part} of a split model, not a whole one", Way.MERGE)

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
    with naming(str(path)):
        part = _part(header)
    return GgufFile(header, find_types(header), part)


def _part(header: Header) -> Part | None:
    """As llama.cpp takes it: a count of 1 is a whole model, and so is one of 0, which a merged file has."""
    if _PART_COUNT not in header.entries:
        return None
    count = _number(header, _PART_COUNT)
    if count <= 1:
        return None
    number = 1 + _number(header, _PART_NO)
    if number > count:
        raise SherryError(f"{_PART_NO} is {number - 1}, but {_PART_COUNT} is {count}; the file is damaged")
    return Part(number, count)


def _number(header: Header, key: str) -> int:
    value = header.value(key)
    if type(value) is not int or value < 0:  # a bool is an int to isinstance
        raise SherryError(f"{key} is missing or no whole number from 0 on; the file is damaged")
    return value
