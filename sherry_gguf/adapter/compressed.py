"""One tensor of a LoRA made sparse and ternary: the largest of its weights, each a sign times one scale.

    t = sign(w) where |w| is among the largest, density of all of them; 0 elsewhere
    w' = t * alpha * std(w), the scale rounded to fp16

Source: ComPEFT, arXiv 2311.13171, algorithm 1. Its task vector is the tensor itself here, as PEFT does not save what A
was when its training began.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sherry_gguf.formats import scales

F32 = npt.NDArray[np.float32]


def compressed(weights: F32, density: float, alpha: float) -> F32:
    """float32 of any shape -> the same shape, of 0 and one magnitude, which is an fp16 number.

    density: the share of weights that stay, at least one; the first of equals. A tensor of zeros stays one.
    """
    flat = weights.reshape(-1)
    scale = scales.nearest(np.float32(alpha * flat.std(dtype=np.float64)).reshape(1)).astype(np.float32)
    kept = np.argsort(-np.abs(flat), kind="stable")[: max(1, round(density * flat.size))]
    out = np.zeros_like(flat)
    out[kept] = np.sign(flat[kept]) * scale
    return out.reshape(weights.shape)
