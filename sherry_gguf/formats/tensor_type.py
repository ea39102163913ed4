"""The record of a tensor type: everything in which types differ is a field of it, or a function that it holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sherry_gguf.errors import SherryError, Way
from sherry_gguf.formats import scales
from sherry_gguf.formats.code_blocks import CodeBlocks
from sherry_gguf.formats.groups import GROUP, STRIDE, Grid, place
from sherry_gguf.formats.planes import Planes

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

_PART = 1 << 18  # weights handled at a time, so that the temporaries stay in the cache


@dataclass(frozen=True, eq=False)
class BlockType:
    """What a reader of files has to know of any type of ggml.

    name         as gguf-py has it
    type_id      ggml's number, as this project writes it
    block        weights of a row that make a block
    block_bytes  of the file
    """

    name: str
    type_id: int
    block: int
    block_bytes: int

    def size(self, shape: Sequence[int]) -> int | None:
        """Bytes of a tensor whose shape has the row's length first; None where rows are no whole blocks."""
        row = shape[0] if shape else 1
        return None if row % self.block else math.prod(shape) // self.block * self.block_bytes


@dataclass(frozen=True, eq=False, kw_only=True)
class TensorType(BlockType):
    """A type that can hold ternary weights exactly: every weight is the trained one, alpha rounded once to fp16.

    encode         float32[rows, k] -> uint8[rows, k/block*block_bytes]; undefined where the type cannot hold the
                   weights, as ``pack`` then finds out
    decode         the inverse, to Planes; never refuses bytes
    file_type      general.file_type of a file in which most weights have this type
    codes          the layout of group codes, for types that have them; they alone mind where zeros are
    planes         how many ternary values with scales of their own add up to a weight
    seen           other ids that the type has in published files, and its own where they give another file type:
                   id -> their general.file_type, None where no file type is known
    any_private_id whether bytes of this type are recognized under an id above upstream's that is nobody's
    format_version sherry.format_version that a file with this type needs; None: the key says nothing about it
    is_stock       whether a llama.cpp without the patch reads it
    is_fast        whether upstream or the patch has a kernel for x86
    only_ternary   whether other weights than ternary ones are damage; such tensors are left alone where they are not
    """

    encode: Callable[[F32], U8]
    decode: Callable[[U8], Planes]
    file_type: int
    codes: CodeBlocks | None = None
    planes: int = 1
    seen: Mapping[int, int | None] = field(default_factory=dict)
    any_private_id: bool = False
    format_version: int | None = None
    is_stock: bool = False
    is_fast: bool = True
    only_ternary: bool = True

    @property
    def grid(self) -> Grid | None:
        """Which four weights have one zero; None: zeros are anywhere."""
        return None if self.codes is None else self.codes.grid

    @property
    def outtype(self) -> str:
        """The name as a person types it."""
        return self.name.lower()

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.block_bytes / self.block

    @property
    def ids(self) -> tuple[int, ...]:
        """All ids that the type is known to have, its own first."""
        return (self.type_id, *(type_id for type_id in self.seen if type_id != self.type_id))

    @property
    def needs(self) -> str:
        """What a matrix must be like, for a message."""
        one_zero: dict[Grid | None, str] = {
            None: "",
            "consecutive": f", and one zero in every {GROUP} neighbours",
            "stride16": f", and one zero in every {GROUP} weights {STRIDE} apart",
        }
        n = "one scale" if self.planes == 1 else f"{self.planes} scales"
        if self.planes > 1 and self.codes is not None:
            n += f" for {self.planes} planes that add up"
            one_zero = {grid: text.replace("one zero", "in each plane one zero") for grid, text in one_zero.items()}
        return f"its blocks have {self.block} weights and {n}{one_zero[self.grid]}"

    def pack(self, weights: F32) -> U8:
        """float32[rows, k] -> blocks uint8[rows, k/block*block_bytes] that give back each of the weights as it is.

        Raises SherryError, naming row and group, where no bytes do.
        """
        rows, k = weights.shape
        if k % self.block:
            raise SherryError(
                f"rows of {k} weights are no multiple of {self.block}, which {self.name} needs", Way.OTHER_TYPE
            )
        grid = self.grid or "consecutive"
        if self.planes == 1 and self.codes is not None and (exact := self.codes.encode_exact(weights)) is not None:
            return exact
        if self.planes == 1:
            scales.require_fit(np.abs(weights).reshape(rows, -1, self.block).max(axis=-1), self.block, grid)
        data = self.encode(weights)
        wrong = self.decode(data).weights != weights
        if wrong.any():
            in_fours = wrong if self.codes is None else self.codes.to_fours(wrong)
            raise SherryError(
                f"{np.count_nonzero(wrong)} weights do not fit {self.name}: {self.needs}; "
                f"the first is in {place(int(np.argmax(in_fours)) // GROUP, k, grid)}"
            )
        return data

    def dequantize(self, data: U8) -> F32:
        """blocks uint8[rows, k/block*block_bytes] -> weights float32[rows, k].

        Raises SherryError for a scale that no block may have.
        """
        planes = self.decode(data)
        if self.codes is not None:
            for d in planes.d:
                scales.require_sound(d)
        return planes.weights

    def holds(self, weights: F32) -> bool:
        """Whether the type has bytes for all of the trained weights float32[rows, k], alpha rounded to fp16."""
        return weights.shape[1] % self.block == 0 and not any(wrong.any() for wrong in self._wrong(weights))

    def count_wrong(self, weights: F32) -> int:
        """How many of the trained weights float32[rows, k] come back as others, k a multiple of the block."""
        return sum(int(np.count_nonzero(wrong)) for wrong in self._wrong(weights))

    def _wrong(self, weights: F32) -> Iterator[npt.NDArray[np.bool_]]:
        """bool[rows, k], some rows at a time: which weights do not come back."""
        step = max(1, _PART // max(weights.shape[1], 1))
        for start in range(0, len(weights), step):
            part = weights[start : start + step]
            found = self.decode(self.encode(part)).weights
            # the sum of two scales is exact as it is, and may have no fp16 form
            yield (found != scales.rounded_weights(part)) & (found != part)
