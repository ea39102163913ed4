"""Bytes of a type against the trained weights they stand for: weight by weight, scale by scale, with no tolerance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from sherry_gguf.formats.groups import GROUP, place, signs, to_fours
from sherry_gguf.formats.scales import nearest, rounded_weights
from sherry_gguf.formats.tensor_type import TensorType
from sherry_gguf.threads import in_parts, rows_of

F32 = npt.NDArray[np.float32]
I8 = npt.NDArray[np.int8]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]
Bool = npt.NDArray[np.bool_]

_INFINITY = np.float16(np.inf).view(np.uint16)
_PART = 1 << 18  # weights handled at a time, so that the temporaries stay in the cache


@dataclass(frozen=True)
class WeightCheck:
    """tensors, weights, scales   how many were compared
    wrong_weights    weights whose sign or zero is not the trained one
    wrong_scales     scales that are not the trained alpha rounded to fp16
    max_scale_error  largest |scale - alpha| / alpha; rounding alone gives up to 2**-11 for normal fp16 numbers
    first_wrong      where the first wrong weight or scale is, None without one
    """

    tensors: int = 0
    weights: int = 0
    wrong_weights: int = 0
    scales: int = 0
    wrong_scales: int = 0
    max_scale_error: float = 0.0
    first_wrong: str | None = None

    def __add__(self, other: WeightCheck) -> WeightCheck:
        return WeightCheck(
            self.tensors + other.tensors,
            self.weights + other.weights,
            self.wrong_weights + other.wrong_weights,
            self.scales + other.scales,
            self.wrong_scales + other.wrong_scales,
            max(self.max_scale_error, other.max_scale_error),
            self.first_wrong or other.first_wrong,
        )


def compare(name: str, data: U8, trained: F32, tensor_type: TensorType) -> WeightCheck:
    """uint8[rows, k/block*block_bytes] of a type against the trained weights float32[rows, k], alpha not rounded."""
    k = trained.shape[1]
    grid = tensor_type.grid or "consecutive"

    def part(start: int, stop: int) -> WeightCheck:
        check, wrong = _compare_rows(data[start:stop], trained[start:stop], tensor_type)
        if not wrong.any():
            return check
        first = (start * k + int(np.argmax(to_fours(wrong, grid)))) // GROUP
        return replace(check, first_wrong=f"{name}, {place(first, k, grid)}")

    return sum(in_parts(part, len(trained), rows_of(k)), WeightCheck(tensors=1))


def _compare_rows(data: U8, trained: F32, tensor_type: TensorType) -> tuple[WeightCheck, Bool]:
    """As ``compare``, of some rows, with bool[rows, k]: what is wrong."""
    planes = tensor_type.decode(data)
    if len(planes.t) > 1:
        return _compare_sums(planes.weights, trained, tensor_type)
    ternary, scales = planes.folded()
    alpha = _largest(trained, tensor_type.block)
    differ = _differ(ternary, trained, alpha)
    wrong_scale = (scales != nearest(alpha)) | _uneven(trained, alpha).any(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.where(scales == alpha, 0, np.abs(scales - alpha) / alpha)
    check = WeightCheck(
        weights=trained.size,
        wrong_weights=int(np.count_nonzero(differ)),
        scales=alpha.size,
        wrong_scales=int(np.count_nonzero(wrong_scale)),
        max_scale_error=float(error.max()),
    )
    return check, (differ | wrong_scale[..., None]).reshape(trained.shape)


def _compare_sums(found: F32, trained: F32, tensor_type: TensorType) -> tuple[WeightCheck, Bool]:
    """As ``_compare_rows``, of the weights float32[rows, k] of a type of several planes: they alone tell its scales."""
    wrong = (found != trained) & (found != rounded_weights(trained))
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.where(found == trained, 0, np.abs(found - trained) / np.abs(trained))
    check = WeightCheck(
        weights=trained.size,
        wrong_weights=int(np.count_nonzero(wrong)),
        scales=trained.size // tensor_type.block * tensor_type.planes,
        max_scale_error=float(error.max()),
    )
    return check, wrong


def count_changed(trained: F32, tensor_type: TensorType) -> int:
    """How many of the trained weights float32[rows, k], alpha not rounded, the type changes at least.

    Rounding alpha does not count. Each block has the scale, and each group the zero, that keep most of its weights as
    they are: no bytes keep more. Of a type of several planes, which weights its own encoder changes. k is a multiple of
    the block.
    """
    if tensor_type.planes > 1:
        return tensor_type.count_wrong(trained)
    return trained.size - sum(int(_most_kept(w, m, tensor_type).sum()) for w, m in _parts(trained, tensor_type))


def _parts(trained: F32, tensor_type: TensorType) -> Iterator[tuple[F32, U16]]:
    """The matrix, some blocks at a time: weights in fours float32[n, block], and their magnitudes as bits of fp16."""
    rows = max(1, _PART // trained.shape[1])
    for start in range(0, len(trained), rows):
        part = trained[start : start + rows]
        weights = to_fours(part, tensor_type.grid or "consecutive").reshape(-1, tensor_type.block)
        yield weights, nearest(np.abs(weights)).view(np.uint16)


def _kept(weights: F32, magnitudes: U16, scale: U16, tensor_type: TensorType) -> I64:
    """int64[n]: how many weights of each block float32[n, block] a type can give back with the scales uint16[n]."""
    zero = weights == 0
    same = (magnitudes == scale[:, None]) & ~zero & (scale != 0)[:, None]  # what fp16 makes 0 is not kept
    anywhere: I64 = (zero | same).sum(axis=1)
    if tensor_type.grid is None:
        return anywhere
    # a group keeps one of its zeros, and three of its other weights
    zeros, others = (part.reshape(len(weights), -1, GROUP).sum(axis=2) for part in (zero, same))
    in_groups = (np.minimum(zeros, 1) + np.minimum(others, GROUP - 1)).sum(axis=1)
    return np.where(scale == 0, anywhere, in_groups)  # under a scale of 0 all are zeros


def _most_kept(weights: F32, magnitudes: U16, tensor_type: TensorType) -> I64:
    """int64[n]: ``_kept`` with the best of all scales."""
    candidates = np.sort(magnitudes, axis=1)
    best = _kept(weights, magnitudes, np.zeros(len(weights), dtype=np.uint16), tensor_type)
    for i in range(tensor_type.block):
        new = (candidates[:, i] != (candidates[:, i - 1] if i else 0)) & (candidates[:, i] < _INFINITY)
        if new.any():
            best[new] = np.maximum(best[new], _kept(weights[new], magnitudes[new], candidates[new, i], tensor_type))
    return best


def _largest(trained: F32, block: int) -> F32:
    """float32[rows, k] -> float32[rows, k/block]."""
    largest: F32 = np.abs(trained).reshape(len(trained), -1, block).max(axis=-1)
    return largest


def _differ(ternary: I8, trained: F32, alpha: F32) -> Bool:
    """bool[rows, k/block, block]: a sign or zero is not the trained one. Codes of a block of zeros mean nothing."""
    differ: Bool = (ternary != signs(trained)).reshape(*alpha.shape, -1) & (alpha != 0)[..., None]
    return differ


def _uneven(trained: F32, alpha: F32) -> Bool:
    """bool[rows, k/block, block]: a weight's magnitude in fp16 is not that of its block."""
    magnitudes = np.abs(trained).reshape(*alpha.shape, -1)
    uneven: Bool = (magnitudes != alpha[..., None]) & (magnitudes != 0)
    if uneven.any():
        uneven &= nearest(magnitudes) != nearest(alpha)[..., None]
    return uneven
