"""What a layer's inputs say of its weights: H = X^T X, and of it the factor that error feedback works with."""

from __future__ import annotations

from typing import Final

import torch

from sherry_gguf.errors import SherryError

_DAMPING: Final = 0.01  # of the mean diagonal, added to it
_PARALLEL: Final = 1 - 1e-5  # the cosine from which on float32's sums cannot tell two channels apart


class Hessian:
    """H of one input of a layer, float32[k, k], summed over ``tokens``."""

    def __init__(self, k: int, device: torch.device) -> None:
        self.sum = torch.zeros(k, k, dtype=torch.float32, device=device)
        self.tokens = 0

    def add(self, inputs: torch.Tensor) -> None:
        """inputs: [..., k], in any float dtype."""
        rows = inputs.reshape(-1, inputs.shape[-1]).to(torch.float32)
        self.sum.addmm_(rows.T, rows)
        self.tokens += len(rows)

    def merge(self, other: Hessian) -> None:
        """Add what another one has seen."""
        self.sum += other.sum
        self.tokens += other.tokens

    @property
    def dead(self) -> list[int]:
        """The channels that were 0 in every token."""
        found: list[int] = torch.nonzero(self.sum.diagonal() == 0).flatten().tolist()
        return found

    @property
    def repeated(self) -> list[tuple[int, int]]:
        """(channel, an earlier one that it was a multiple of in every token), as far as float32 tells."""
        norms = self.sum.diagonal().sqrt()
        cosines = (self.sum / norms[:, None] / norms).nan_to_num_(0.0)  # a dead channel is no multiple
        largest, earlier = cosines.abs_().tril_(-1).max(dim=1)
        found = torch.nonzero(largest >= _PARALLEL).flatten().tolist()
        return [(channel, int(earlier[channel])) for channel in found]

    def require_finite(self) -> None:
        """Raise SherryError if the inputs are finite, and the sum of their squares is not."""
        if not torch.isfinite(self.sum).all():
            raise SherryError(
                f"its inputs are so large that float32 does not hold the sum of their squares over {self.tokens:,} "
                f"tokens of the text; the model overflows there, as it would with other text"
            )


def damped(hessian: torch.Tensor) -> torch.Tensor:
    """[k, k] -> float64[k, k]: with 1% of its mean diagonal added to it.

    A channel that was always 0 gets a diagonal of 1: nothing that is written there matters.
    """
    found = hessian.to(torch.float64, copy=True)
    diagonal = found.diagonal()
    dead = diagonal == 0
    diagonal += _DAMPING * diagonal.mean()
    diagonal[dead] = 1
    return found


def upper_factor(hessian: torch.Tensor) -> torch.Tensor:
    """[k, k], damped -> U float64[k, k], upper triangular, with U^T U = H^-1.

    Raises SherryError for a matrix that has no such factor, as a damped sum of squares always has.
    """
    # With the rows and columns reversed a lower factor L is the upper one R of H = R R^T, so that U = R^-1.
    lower, failed = torch.linalg.cholesky_ex(hessian.to(torch.float64).flip(0, 1))
    if failed.item() or not torch.isfinite(lower).all():
        raise SherryError("the statistics of its inputs are no positive definite matrix")
    identity = torch.eye(len(lower), dtype=torch.float64, device=lower.device)
    upper: torch.Tensor = torch.linalg.solve_triangular(lower, identity, upper=False).flip(0, 1)
    return upper
