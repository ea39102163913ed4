"""Blocks of group codes: the layout that the types of Sherry's own share.

    qs     two indices a byte, as ``low`` and ``high`` tell
    signs  bit g % 8 of byte g // 8 = sign of group g
    d      IEEE fp16 scale, little-endian, finite and >= 0

A block whose scale is 0 is all zero bytes. It stands for weights that are all 0, which no code could.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from sherry_gguf.errors import SherryError, Way
from sherry_gguf.formats import scales as fp16
from sherry_gguf.formats.groups import GROUP, Grid, codes_of, exact_codes_of, from_fours, ternary, to_fours
from sherry_gguf.formats.planes import Planes
from sherry_gguf.threads import in_parts, rows_of

F16 = npt.NDArray[np.float16]
F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True)
class CodeBlocks:
    """name: of the type, for messages; block: weights in a block; low, high: the groups whose indices make qs."""

    name: str
    block: int
    grid: Grid
    low: slice
    high: slice

    @property
    def groups(self) -> int:
        """Groups in a block."""
        return self.block // GROUP

    @cached_property
    def dtype(self) -> np.dtype[np.void]:
        """The fields of a block."""
        n = self.groups
        return np.dtype([("qs", np.uint8, (n // 2,)), ("signs", np.uint8, (n // 8,)), ("d", "<f2")])

    @property
    def block_bytes(self) -> int:
        return self.dtype.itemsize

    def to_fours(self, weights: npt.NDArray[_Scalar]) -> npt.NDArray[_Scalar]:
        """[..., k] in a row's order -> [..., k] in the order of the groups."""
        return to_fours(weights, self.grid)

    def pack(self, codes: U8, scales: F32) -> U8:
        """codes uint8[rows, k/4], scales float32[rows, k/block] -> blocks uint8[rows, k/block*block_bytes].

        Raises SherryError where rows are no whole blocks, scales change inside a block, or fp16 cannot hold one.
        """
        rows, k = codes.shape[0], codes.shape[1] * GROUP
        if k % self.block:
            raise SherryError(
                f"rows of {k} weights are no multiple of {self.block}, which {self.name} needs", Way.OTHER_TYPE
            )
        if scales.shape != (rows, k // self.block):
            raise SherryError(
                f"a scale per {k // scales.shape[1]} weights does not fit {self.name}, which has one per {self.block}",
                Way.OTHER_TYPE,
            )
        fp16.require_fit(scales, self.block, self.grid)
        return self._assemble(codes, fp16.nearest(scales))

    def unpack(self, blocks: U8) -> tuple[U8, F32]:
        """blocks uint8[rows, k/block*block_bytes] -> codes uint8[rows, k/4], scales float32[rows, k/block].

        Raises SherryError for a scale that is negative or not finite.
        """
        codes, d = self._take_apart(blocks)
        fp16.require_sound(d)
        return codes, d.astype(np.float32)

    def encode(self, weights: F32) -> U8:
        """float32[rows, k] -> blocks, as ``TensorType.encode``: each block's scale is its largest magnitude."""
        largest = np.abs(weights).reshape(len(weights), -1, self.block).max(axis=-1)
        return self._assemble(codes_of(self.to_fours(weights)), fp16.nearest(largest))

    def encode_exact(self, weights: F32) -> U8 | None:
        """As ``encode``, of weights that come back as they are; None where only ``decode`` can find out if they do.

        Nothing is decoded: in each block the weights that are not 0 are those of one magnitude, which fp16 has. Float
        bits are read three times, and all else is done with a bit a weight.
        """
        out = np.empty((len(weights), weights.shape[1] // self.block * self.block_bytes), dtype=np.uint8)

        def part(start: int, stop: int) -> bool:
            blocks = self._encode_exact(weights[start:stop])
            if blocks is not None:
                out[start:stop] = blocks
            return blocks is not None

        return out if all(in_parts(part, len(weights), rows_of(weights.shape[1]))) else None

    def _encode_exact(self, weights: F32) -> U8 | None:
        fours = self.to_fours(weights).reshape(-1, self.block)
        first = np.abs(fours[:, :GROUP]).T
        scales = np.maximum(np.maximum(first[0], first[1]), np.maximum(first[2], first[3]))
        d = fp16.nearest(scales)
        if not ((d == scales) & (d > 0) & np.isfinite(d)).all():
            return None
        nonzero = np.packbits(fours != 0, bitorder="little")
        if not np.array_equal(nonzero, np.packbits(np.abs(fours) == scales[:, None], bitorder="little")):
            return None
        codes = exact_codes_of(nonzero, np.packbits(fours < 0, bitorder="little"))
        rows = len(weights)
        return None if codes is None else self._assemble(codes.reshape(rows, -1), d.reshape(rows, -1))

    def decode(self, blocks: U8) -> Planes:
        """blocks -> Planes, as ``TensorType.decode``."""
        codes, d = self._take_apart(blocks)
        return Planes(from_fours(ternary(codes), self.grid)[None], d[None])

    def _assemble(self, codes: U8, d: F16) -> U8:
        out = np.empty(d.shape, dtype=self.dtype)
        groups = codes.reshape(*d.shape, self.groups)
        indices = groups & 0xF
        out["qs"] = indices[..., self.low] | indices[..., self.high] << 4
        out["signs"] = np.packbits(groups >> 4, bitorder="little").reshape(*d.shape, -1)
        out["d"] = d
        out[d == 0] = 0
        return out.view(np.uint8).reshape(len(d), -1)

    def _take_apart(self, blocks: U8) -> tuple[U8, F16]:
        rows, row_bytes = blocks.shape
        if row_bytes % self.block_bytes:
            raise SherryError(
                f"rows of {row_bytes} bytes are no multiple of a {self.name} block's {self.block_bytes}; truncated?"
            )
        fields = np.ascontiguousarray(blocks).view(self.dtype)
        codes: U8 = np.unpackbits(np.ascontiguousarray(fields["signs"]), axis=-1, bitorder="little") << np.uint8(4)
        codes[..., self.low] |= fields["qs"] & 0xF
        codes[..., self.high] |= fields["qs"] >> 4
        return codes.reshape(rows, -1), fields["d"]
