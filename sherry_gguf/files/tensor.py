"""A tensor of a file: it knows its type, and yields its own weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sherry_gguf.files.header import Header, TensorInfo
from sherry_gguf.formats.planes import Planes
from sherry_gguf.formats.tensor_type import BlockType, TensorType
from sherry_gguf.weights.fit import Matrix

U8 = npt.NDArray[np.uint8]

_CHUNK = 1 << 22  # weights at a time, or one row


def rows_at_a_time(row: int) -> int:
    """How many rows of that many weights make a chunk."""
    return max(1, _CHUNK // max(row, 1))


@dataclass(frozen=True)
class FileTensor:
    """info, header: where it is, and in which file.

    type     the one that its bytes have, whatever its id says; None if that is not known
    problem  why the type is not known, unless the id is nobody's; beside a type, a gap behind the tensor's bytes,
             which ggml refuses
    """

    info: TensorInfo
    header: Header
    type: BlockType | None
    problem: str | None = None

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def type_name(self) -> str | None:
        """The name of its type, None for an unknown one."""
        return None if self.type is None else self.type.name

    @property
    def ternary_type(self) -> TensorType | None:
        """Its type, if that is one of the table: its weights may be ternary, and ``chunks`` can read them."""
        return self.type if isinstance(self.type, TensorType) else None

    @property
    def n_bytes(self) -> int:
        """Without padding, but for an unknown type."""
        size = None if self.type is None else self.type.size(self.info.shape)
        return self.info.span if size is None else size

    @property
    def place(self) -> str:
        """For messages."""
        return f"{self.header.path}: {self.name}"

    @property
    def stored(self) -> U8:
        """uint8[n]: its bytes, mapped; those of an unknown type reach up to the next tensor."""
        return self.header.data[self.info.start : self.info.start + self.n_bytes]

    @property
    def rows(self) -> U8:
        """uint8[rows, bytes of a row] of a known type, mapped."""
        n = self.info.weights // max(self.info.row, 1)
        return self.stored.reshape(n, -1) if n else self.stored.reshape(0, 0)

    def chunks(self) -> Iterator[Planes]:
        """Its weights, rows by rows. The tensor has a ``ternary_type``. Memory: a few times 4 M weights, or a row."""
        assert self.ternary_type is not None
        rows, step = self.rows, rows_at_a_time(self.info.row)
        for start in range(0, len(rows), step):
            yield self.ternary_type.decode(rows[start : start + step])

    def matrix(self) -> Matrix:
        """The weights as ``weights.fit`` wants them. The tensor has a ``ternary_type``, and is not damaged."""
        return Matrix(self.name, self.info.weights, self.info.row, lambda: (planes.weights for planes in self.chunks()))
