"""Which types hold a matrix of ternary weights, and how many of the weights a type would change."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sherry_gguf.formats.table import tensor_types
from sherry_gguf.formats.tensor_type import TensorType
from sherry_gguf.weights.compare import count_changed

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Matrix:
    """A tensor of a file or of one to come. chunks: its weights float32[some rows, row], read anew by each call."""

    name: str
    weights: int
    row: int
    chunks: Callable[[], Iterable[F32]]

    def held_by(self, tensor_type: TensorType) -> bool:
        """Whether the type has bytes for every weight, alpha rounded to fp16."""
        return self.row % tensor_type.block == 0 and all(tensor_type.holds(chunk) for chunk in self.chunks())


@dataclass(frozen=True)
class Misfit:
    """A matrix that a type does not hold: how many of its weights would change, all where rows are no whole blocks."""

    matrix: Matrix
    changed: int


def misfit(matrix: Matrix, asked: TensorType) -> Misfit | None:
    """None if the type holds the matrix."""
    if matrix.row % asked.block:
        return Misfit(matrix, matrix.weights)
    changed = sum(count_changed(chunk, asked) for chunk in matrix.chunks() if not asked.holds(chunk))
    return Misfit(matrix, changed) if changed else None


def holders(matrices: Iterable[Matrix]) -> dict[str, list[TensorType]]:
    """Name of each matrix -> the types that hold it, smallest first."""
    return {matrix.name: [t for t in tensor_types() if matrix.held_by(t)] for matrix in matrices}
