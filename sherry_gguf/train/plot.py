"""The course of a training as a picture: loss, learning rate, lambda, effective rank of the gradients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

_CURVES = {
    "loss": "loss, nats a token",
    "learning_rate": "learning rate",
    "lambda": "lambda of the residual",
    "effective_rank": "effective rank of the gradients",
}


def plot_log(history: Sequence[dict[str, Any]], file: Path) -> None:
    """``state.log_history`` of a Trainer -> a PNG with one curve below the other, of those that were logged.

    ``eval_loss`` is drawn beside the loss.
    """
    logged = [key for key in _CURVES if any(key in entry for entry in history)]
    if not logged:
        return
    figure = Figure(figsize=(7, 2.2 * len(logged)), layout="constrained")
    axes = figure.subplots(len(logged), sharex=True, squeeze=False)[:, 0]
    for axis, key in zip(axes, logged, strict=True):
        for name in (key, f"eval_{key}"):
            points = [(entry["step"], entry[name]) for entry in history if name in entry]
            if points:
                axis.plot(*zip(*points, strict=True), label=name, marker="." if name != key else None)
        axis.set_ylabel(_CURVES[key], fontsize="small")
        axis.grid(alpha=0.3)
    axes[0].legend()
    axes[-1].set_xlabel("optimizer step")
    figure.savefig(file, dpi=110)
