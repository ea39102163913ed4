"""What the blocks of a tensor hold, as numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sherry_gguf.formats.groups import signs

F16 = npt.NDArray[np.float16]
F32 = npt.NDArray[np.float32]
I8 = npt.NDArray[np.int8]

_NEITHER = np.int8(2)  # stands for a weight that is neither 0 nor of its block's largest magnitude


@dataclass(frozen=True)
class Planes:
    """Some rows of a tensor. A weight is the sum over all planes of t * d; most types have one plane.

    t   int8[planes, rows, k], in a row's order
    d   float16[planes, rows, k/block], as in the file: what is damaged there is damaged here
    """

    t: I8
    d: F16

    @property
    def weights(self) -> F32:
        """float32[rows, k]"""
        _, rows, k = self.t.shape
        with np.errstate(invalid="ignore", over="ignore"):
            parts = np.multiply(
                self.t.reshape(*self.d.shape, -1), self.d.astype(np.float32)[..., None], dtype=np.float32
            )
            return parts.sum(axis=0, dtype=np.float32).reshape(rows, k) if len(parts) > 1 else parts.reshape(rows, k)

    @property
    def is_finite(self) -> bool:
        """Whether all scales are."""
        return bool(np.isfinite(self.d).all())

    def without_damage(self) -> Planes:
        """The same with zeros for the blocks of a plane whose scale is not finite."""
        bad = ~np.isfinite(self.d)
        if not bad.any():
            return self
        t = self.t.reshape(*self.d.shape, -1) * ~bad[..., None]
        return Planes(t.reshape(self.t.shape), np.where(bad, np.float16(0), self.d))

    def folded(self) -> tuple[I8, F32]:
        """t int8[rows, k], scales float32[rows, k/block]: one plane that has the same weights, where one can.

        One can where each block has but one magnitude. Elsewhere a block's t has magnitudes that differ, too.
        """
        if len(self.t) == 1:
            return self.t[0], self.d[0].astype(np.float32)
        weights = self.weights.reshape(*self.d.shape[1:], -1)
        magnitudes = np.abs(weights)
        scales: F32 = magnitudes.max(axis=-1)
        t = np.where((magnitudes == scales[..., None]) | (weights == 0), signs(weights), _NEITHER)
        return t.reshape(self.t.shape[1:]), scales
