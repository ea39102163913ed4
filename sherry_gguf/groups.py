"""Which four weights of a row make a group: four neighbours (``consecutive``), or weights 16 apart (``stride16``).

The published trainer has the first kind, the type STQ1_0 the second: group g of a row takes the weights
(g // 16) * 64 + g % 16 + 16 * p, p = 0..3. Weights in fours are those of a row in the order of its groups, so that
whatever knows neighbours alone can read them; runs of 64 weights, and so all blocks, stay where they are.
"""

from __future__ import annotations

from typing import Any, Final, Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from sherry_gguf.format import GROUP

Groups = Literal["consecutive", "stride16"]
GROUPS: Final[tuple[Groups, ...]] = get_args(Groups)

STRIDE: Final = 16
RUN: Final = {"consecutive": GROUP, "stride16": STRIDE * GROUP}
"""The least number of neighbours that are whole groups."""

_Scalar = TypeVar("_Scalar", bound=np.generic)


def to_fours(weights: npt.NDArray[_Scalar], groups: Groups) -> npt.NDArray[_Scalar]:
    """[..., k] in a row's order -> [..., k] in fours. k is a multiple of RUN."""
    return weights if groups == "consecutive" else _swap(weights, GROUP, STRIDE)


def from_fours(weights: npt.NDArray[_Scalar], groups: Groups) -> npt.NDArray[_Scalar]:
    """[..., k] in fours -> [..., k] in a row's order. k is a multiple of RUN."""
    return weights if groups == "consecutive" else _swap(weights, STRIDE, GROUP)


def place(group_index: int, row_length: int, groups: Groups = "consecutive") -> str:
    """Where the group with this index in a matrix is, for a message."""
    row, group = divmod(group_index, row_length // GROUP)
    if groups == "consecutive":
        return f"row {row}, group {group} (weights {group * GROUP}..{group * GROUP + GROUP - 1})"
    first = group // STRIDE * RUN[groups] + group % STRIDE
    return f"row {row}, group {group} (weights {', '.join(str(first + STRIDE * p) for p in range(GROUP))})"


def _swap(weights: npt.NDArray[Any], outer: int, inner: int) -> npt.NDArray[Any]:
    runs = weights.reshape(*weights.shape[:-1], weights.shape[-1] // (outer * inner), outer, inner)
    return np.ascontiguousarray(runs.swapaxes(-1, -2)).reshape(weights.shape)
