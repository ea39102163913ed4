"""What a ternary tensor is like: the grid of its weights, its codes, its scales and who shares them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from sherry_gguf.files.tensor import FileTensor
from sherry_gguf.formats.groups import CODES, GRIDS, GROUP, PERIOD, Grid, codes_of, to_fours
from sherry_gguf.weights.detect import MOST_GROUPS

I8 = npt.NDArray[np.int8]
F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

GRID_NAMES: Final[dict[Grid, str]] = {"consecutive": "consecutive fours", "stride16": "stride 16"}
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
class Statistics:
    """What is counted in one ternary tensor.

    groups        grid -> how many groups there are, those of empty blocks left out; one_zero: that have one zero
    codes         int64[32], of the type's own groups; None for types that have no codes, or two a group
    empty_blocks  blocks whose weights are all 0, damaged ones among them
    shared        the most weights known to share a scale: tensor, row, or how many of a row
    """

    groups: dict[Grid, int]
    one_zero: dict[Grid, int]
    codes: I64 | None
    scales: Scales
    empty_blocks: int = 0
    shared: str = ""

    @property
    def grid(self) -> str:
        if not any(self.groups.values()):
            return EMPTY
        for grid, name in GRID_NAMES.items():
            if self.groups[grid] and self.one_zero[grid] >= MOST_GROUPS * self.groups[grid]:
                return name
        return DENSE


def statistics_of(tensor: FileTensor) -> Statistics | None:
    """Reads a tensor that has a ``ternary_type`` once; None for one of which a block has more magnitudes than one.

    Memory: a few times a chunk.
    """
    tensor_type = tensor.ternary_type
    assert tensor_type is not None
    codes = None if tensor_type.codes is None or tensor_type.planes > 1 else np.zeros(CODES, dtype=np.int64)
    found = Statistics(dict.fromkeys(GRIDS, 0), dict.fromkeys(GRIDS, 0), codes, Scales())
    sharing = _Sharing(tensor_type.block, tensor.info.row)
    for planes in tensor.chunks():
        t, scales = planes.without_damage().folded()
        magnitudes, is_ternary = _magnitudes(t, scales)
        if not is_ternary:
            return None
        found.scales.add(planes.d)
        is_empty = magnitudes == 0
        found.empty_blocks += int(np.count_nonzero(is_empty))
        sharing.add(magnitudes)
        _count_groups(found, t, is_empty, tensor_type.grid)
    found.shared = sharing.widest()
    return found


def _magnitudes(t: I8, scales: F32) -> tuple[F32, bool]:
    """t int8[rows, k], scales float32[rows, k/block] -> float32[rows, k/block]: of the weights that are not 0.

    And whether each block has but one.
    """
    in_blocks = np.abs(t.reshape(*scales.shape, -1))
    largest = in_blocks.max(axis=-1)
    is_ternary = bool(((in_blocks == largest[..., None]) | (in_blocks == 0)).all())
    return largest * np.abs(scales), is_ternary


def _count_groups(found: Statistics, t: I8, is_empty: Bool, own: Grid | None) -> None:
    """t int8[rows, k], is_empty bool[rows, k/block]; own: the grid of the type"""
    in_empty = is_empty.repeat(t.shape[1] // is_empty.shape[1], axis=1)
    for grid in GRIDS:
        if t.shape[1] % PERIOD[grid]:
            continue
        fours = to_fours(t, grid).reshape(-1, GROUP)
        is_kept = ~to_fours(in_empty, grid).reshape(-1, GROUP).all(axis=1)
        has_one_zero = np.count_nonzero(fours == 0, axis=1) == 1
        found.groups[grid] += int(np.count_nonzero(is_kept))
        found.one_zero[grid] += int(np.count_nonzero(has_one_zero & is_kept))
        if grid == own and found.codes is not None:
            found.codes += np.bincount(codes_of(fours)[:, 0][is_kept], minlength=CODES)


class _Sharing:
    """Follows over all rows which neighbouring blocks have one scale. Empty blocks fit beside any other."""

    def __init__(self, block: int, row: int) -> None:
        self.block = block
        n = row // block
        self.sizes = [size for size in range(2, n) if n % size == 0]  # in blocks
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


def _constant(blocks: F32) -> bool:
    largest = blocks.max(axis=1, keepdims=True)
    return bool(((blocks == largest) | (blocks == 0)).all())
