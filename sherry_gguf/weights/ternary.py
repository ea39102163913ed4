"""Dense ternary weights: latents -> the values that the trained forward multiplies with, 0 or a scale with a sign.

The relatives of Sherry put their zeros anywhere. A weight is 0 where its magnitude is below a threshold:

    absmean     scale: mean |w| of the scale run; threshold: half of it (AngelSlim)
    twn         threshold: 0.75 mean |w|; scale: mean |w| of those above (AngelSlim, arXiv 1605.04711)
    tequila     as absmean; the dead weights, those below, make a bias besides (arXiv 2509.23809)
    bitnet      scale: mean |w| of the matrix; w / scale is rounded to -1, 0, 1 (BitNet b1.58, arXiv 2402.17764)
    complex_phase_v1 .. v4   not ternary, but of few levels: the sums of Fairy2i (``folded.py``)
    ternary     no latents: the weights are such values already (TriLM, packed checkpoints)

All is as the published forwards compute it in the dtype in which the latents are stored: bf16 rounds a scale, and with
it the threshold. Here float32 holds those numbers; sums are in float64, so that their order does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, get_args

import torch

from sherry_gguf.errors import SherryError
from sherry_gguf.weights.folded import fold
from sherry_gguf.weights.granularity import Granularity

Method = Literal[
    "ternary", "absmean", "twn", "tequila", "bitnet",
    "complex_phase_v1", "complex_phase_v2", "complex_phase_v3", "complex_phase_v4",
]  # fmt: skip
_FOLDED: Final = "complex_phase_v"  # and the number of stages
# Those that a person can name; Tequila's gains are in its checkpoints alone.
DECLARABLE: Final[tuple[Method, ...]] = tuple(method for method in get_args(Method) if method != "tequila")

LEAST_SCALE: Final = 1e-5  # of bitnet
_TWN: Final = 0.75  # of the mean magnitude


@dataclass(frozen=True)
class Rule:
    """How the weights of a checkpoint's layers become ternary.

    granularity  which weights share a scale: of absmean, twn and tequila
    dead_gain    what tequila multiplies its dead weights with; None: a tensor that the layer has for it
    """

    method: Method
    granularity: Granularity = field(default_factory=lambda: Granularity("per_tensor"))
    dead_gain: float | None = None

    def __str__(self) -> str:
        own = f", scales {self.granularity}" if self.method in ("absmean", "twn", "tequila") else ""
        return f"{self.method}{own}"

    @property
    def is_folded(self) -> bool:
        """Whether the values are sums, which no ternary type holds."""
        return self.method.startswith(_FOLDED)

    @property
    def has_bias(self) -> bool:
        return self.method == "tequila"

    def values(self, weights: torch.Tensor) -> torch.Tensor:
        """[rows, k], any float dtype -> float32[rows, k]. Raises SherryError for what is not finite."""
        if not torch.isfinite(weights.abs().max()):
            bad = torch.nonzero(~torch.isfinite(weights))
            raise SherryError(
                f"{len(bad)} weights are not finite, the first at {bad[0].tolist()}; "
                f"the checkpoint is damaged, save it again"
            )
        if self.method == "ternary":
            return weights.to(torch.float32)
        if self.method == "bitnet":
            return _bitnet(weights)
        if self.is_folded:
            return fold(weights, int(self.method.removeprefix(_FOLDED)))
        runs, dtype = self._runs(weights.to(torch.float32)), weights.dtype
        magnitudes = runs.abs()
        scale = _mean(magnitudes, dtype)
        kept = magnitudes >= _in(dtype, _TWN * scale if self.method == "twn" else scale / 2)
        if self.method == "twn":
            total = _in(dtype, (magnitudes * kept).sum(-1, keepdim=True, dtype=torch.float64))
            scale = _in(dtype, total / _in(dtype, kept.sum(-1, keepdim=True).clamp_min(1)))
        return (runs.sign() * scale).mul_(kept).reshape(weights.shape)

    def dead_bias(self, weights: torch.Tensor, dead_gains: torch.Tensor | None) -> torch.Tensor:
        """What tequila adds to the outputs of a layer: [rows, k] -> float32[rows].

        dead_gains: [rows, k], where ``dead_gain`` is None.
        """
        dead = torch.where(self.values(weights) == 0, weights, 0)
        gains = torch.tensor(self.dead_gain, dtype=weights.dtype) if dead_gains is None else dead_gains
        return (dead * gains.to(weights.dtype)).sum(-1, dtype=torch.float64).to(torch.float32)

    def restored(self, weights: torch.Tensor) -> torch.Tensor:
        """``values`` of a layer that was saved as w + (q - w), which is q but for rounding: float32[rows, k].

        q - w is exact where |w| is at most 2 q. Elsewhere it is rounded to a multiple of a coarser power of two, and so
        is the sum. The scale of a run is thus its magnitude that is a multiple of the finest power, and the others are
        that scale, rounded. Raises SherryError where they are not.
        """
        runs = self._runs(weights.to(torch.float32))
        magnitudes = runs.abs()
        power = _power_of_two(magnitudes)
        scale = magnitudes.gather(-1, power.argmin(-1, keepdim=True))
        off = (magnitudes != 0) & (magnitudes != scale)
        if (off & (((magnitudes - scale).abs() > power / 2) | (magnitudes > 2 * scale))).any():
            raise SherryError(
                f"its weights are no {self.method} ones that rounding moved, with scales {self.granularity}"
            )
        return (runs.sign() * scale).reshape(weights.shape)

    def _runs(self, weights: torch.Tensor) -> torch.Tensor:
        return weights.reshape(-1, self.granularity.run_length(*weights.shape))


def _bitnet(weights: torch.Tensor) -> torch.Tensor:
    values = weights.to(torch.float32)
    inverse = 1 / _mean(values.abs().reshape(1, -1), torch.float32).clamp_min(LEAST_SCALE)
    codes = (values * inverse).round_().clamp_(-1, 1)
    return codes.mul_(_in(weights.dtype, 1 / inverse))


def _mean(magnitudes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """float32[n, length] -> float32[n, 1], a number of the dtype."""
    return _in(dtype, magnitudes.mean(-1, keepdim=True, dtype=torch.float64))


def _in(dtype: torch.dtype, numbers: torch.Tensor) -> torch.Tensor:
    """float32[...] -> float32[...]: rounded to a dtype."""
    return numbers.to(dtype).to(torch.float32)


def _power_of_two(magnitudes: torch.Tensor) -> torch.Tensor:
    """float32[...] -> float32[...]: the largest power of two of which each is a multiple, infinite for 0."""
    mantissa, exponent = torch.frexp(magnitudes)
    whole = (mantissa * 2**24).to(torch.int32)
    return torch.where(whole == 0, torch.inf, torch.ldexp((whole & -whole).to(torch.float32), exponent - 24))
