"""The trained forward of Sherry, from the definition in docs/format.md with PyTorch's own top-k: the tests' oracle."""

from __future__ import annotations

import numpy as np
import torch


def trained_forward(w: torch.Tensor, scale_runs: tuple[int, int]) -> torch.Tensor:
    """[rows, k] -> float64[rows, k]; scale_runs: the shape in which each row is a scale run."""
    groups = w.double().reshape(-1, 4)
    kept = torch.zeros_like(groups).scatter_(1, torch.topk(groups.abs(), 3, dim=-1).indices, 1)
    masked = (groups * kept).reshape(scale_runs)
    alpha = masked.abs().sum(dim=1, keepdim=True) / (0.75 * scale_runs[1])
    return (masked.sign() * alpha).reshape(w.shape)


def stored_forward(w: torch.Tensor, length: int) -> np.ndarray:
    """[rows, k] -> float32[rows, k] as a file holds it: alpha, of scale runs of this length, rounded once to fp16."""
    return trained_forward(w, (w.numel() // length, length)).float().half().float().numpy()
