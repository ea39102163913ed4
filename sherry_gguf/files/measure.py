"""What a ternary tensor is like: the grid its weights lie on, its codes, its scales and who shares them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from sherry_gguf.blocks import grid_codes
from sherry_gguf.exact import BY_NAME
from sherry_gguf.files.codecs import Chunk, read_chunks
from sherry_gguf.files.header import Header
from sherry_gguf.files.types import Typed
from sherry_gguf.format import CODES, GROUP
from sherry_gguf.grid import MOST_GROUPS
from sherry_gguf.groups import GROUPS, RUN, to_fours

I8 = npt.NDArray[np.int8]
F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

GRIDS: Final = {"consecutive": "consecutive fours", "stride16": "stride 16"}
DENSE: Final = "dense ternary"
EMPTY: Final = "all zero"


@dataclass
class Scales:
    """Every scale of one or more tensors, counted by its bits: 2**16 numbers, however many there are."""

    counts: I64 = field(default_factory=lambda: np.zeros(1 << 16, dtype=np.int64))

    def add(self, d: npt.NDArray[np.float16]) -> None:
        self.counts += np.bincount(d.reshape(-1).view(np.uint16), minlength=1 << 16)

    def summary(self) -> dict[str, float | int | None]:
        """min, median (the lower one) and max of the finite ones that are not 0; how many are 0, or not finite."""
        values = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
        is_finite = np.isfinite(values)
        used = is_finite & (values != 0) & (self.counts != 0)
        order = np.argsort(values[used], kind="stable")
        sorted_values, cumulative = values[used][order], np.cumsum(self.counts[used][order])
        any_used = bool(used.any())
        middle = int(np.searchsorted(cumulative, (cumulative[-1] + 1) // 2)) if any_used else 0
        return {
            "min": float(sorted_values[0]) if any_used else None,
            "median": float(sorted_values[middle]) if any_used else None,
            "max": float(sorted_values[-1]) if any_used else None,
            "negative": int(self.counts[is_finite & (values < 0)].sum()),
            "zero": int(self.counts[values == 0].sum()),
            "not_finite": int(self.counts[~is_finite].sum()),
        }


@dataclass
class Measured:
    """One ternary tensor.

    is_ternary    each block has one magnitude; without that the rest means nothing
    groups        kind of groups -> how many there are, those of empty blocks left out; one_zero: that have one zero
    codes         int64[32], of the type's own groups; None for types that have no codes
    empty_blocks  blocks whose weights are all 0, damaged ones among them
    shared        the most weights known to share a scale: tensor, row, or how many of a row
    """

    is_ternary: bool
    groups: dict[str, int]
    one_zero: dict[str, int]
    codes: I64 | None
    scales: Scales
    empty_blocks: int
    shared: str

    @property
    def grid(self) -> str:
        if not any(self.groups.values()):
            return EMPTY
        for kind, name in GRIDS.items():
            if self.groups[kind] and self.one_zero[kind] >= MOST_GROUPS * self.groups[kind]:
                return name
        return DENSE


def measure(typed: Typed, header: Header) -> Measured:
    """Reads the tensor of a type in ``codecs.TERNARY`` once. Memory: a few times a chunk."""
    assert typed.type is not None
    own = BY_NAME[typed.type.name].groups
    codes = None if own is None else np.zeros(CODES, dtype=np.int64)
    found = Measured(True, dict.fromkeys(GRIDS, 0), dict.fromkeys(GRIDS, 0), codes, Scales(), 0, "")
    sharing = _Sharing(typed.type.block, typed.tensor.row)
    for chunk in read_chunks(typed, header):
        magnitudes, is_ternary = _magnitudes(chunk)
        if not is_ternary:
            found.is_ternary = False
            return found
        found.scales.add(chunk.d)
        is_empty = magnitudes == 0
        found.empty_blocks += int(np.count_nonzero(is_empty))
        sharing.add(magnitudes)
        _count_groups(found, chunk.t, is_empty, own)
    found.shared = sharing.widest()
    return found


def _magnitudes(chunk: Chunk) -> tuple[F32, bool]:
    """float32[rows, k/block]: of the weights that are not 0; and whether each block has but one."""
    t = np.abs(chunk.t.reshape(*chunk.d.shape, -1))
    largest = t.max(axis=-1)
    is_ternary = bool(((t == largest[..., None]) | (t == 0)).all())
    return largest * np.abs(chunk.usable), is_ternary


def _count_groups(found: Measured, t: I8, is_empty: Bool, own: str | None) -> None:
    """t int8[rows, k], is_empty bool[rows, k/block]"""
    in_empty = is_empty.repeat(t.shape[1] // is_empty.shape[1], axis=1)
    for kind in GROUPS:
        if t.shape[1] % RUN[kind]:
            continue
        fours = to_fours(t, kind).reshape(-1, GROUP)
        is_kept = ~to_fours(in_empty, kind).reshape(-1, GROUP).all(axis=1)
        has_one_zero = np.count_nonzero(fours == 0, axis=1) == 1
        found.groups[kind] += int(np.count_nonzero(is_kept))
        found.one_zero[kind] += int(np.count_nonzero(has_one_zero & is_kept))
        if kind == own and found.codes is not None:
            codes = grid_codes(fours.astype(np.float32))[:, 0]
            found.codes += np.bincount(codes[is_kept], minlength=CODES)


class _Sharing:
    """Follows over all rows which runs of blocks have one scale. Empty blocks fit beside any other."""

    def __init__(self, block: int, row: int) -> None:
        self.block = block
        n = row // block
        self.sizes = [1 << i for i in range(1, n.bit_length()) if n % (1 << i) == 0 and 1 << i < n]  # in blocks
        self.of_row = True
        self.of_tensor = True
        self.magnitude = np.float32(0)

    def add(self, magnitudes: F32) -> None:
        """float32[rows, n]"""
        if self.of_tensor and magnitudes.any():
            self.magnitude = self.magnitude or magnitudes.max()
            self.of_tensor = bool(((magnitudes == self.magnitude) | (magnitudes == 0)).all())
        self.of_row = self.of_row and _constant(magnitudes)
        self.sizes = [size for size in self.sizes if _constant(magnitudes.reshape(-1, size))]

    def widest(self) -> str:
        if self.of_tensor:
            return "tensor"
        if self.of_row:
            return "row"
        return str(self.block * max(self.sizes, default=1))


def _constant(runs: F32) -> bool:
    largest = runs.max(axis=1, keepdims=True)
    return bool(((runs == largest) | (runs == 0)).all())
