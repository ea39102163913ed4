"""Weights of any float type as float32, in the calling thread: PyTorch would wake threads of its own for each part."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

F32 = npt.NDArray[np.float32]


def floats(weights: F32 | torch.Tensor) -> F32:
    """[...] -> float32[...]; what is float32 already is not copied."""
    if isinstance(weights, np.ndarray):
        return weights.astype(np.float32, copy=False)
    import torch  # what has arrays only does without

    if weights.dtype == torch.bfloat16:  # the upper half of a float32, which NumPy does not know
        bits = weights.view(torch.uint16).numpy().astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32)
    values: F32 = weights.numpy().astype(np.float32, copy=False)
    return values
