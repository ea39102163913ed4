"""Arenas, the annealing residual synapse (arXiv 2601.07892, section 4): how much of the latents a layer adds.

Ternary layers pass gradients backwards that are much alike, so that weights stay where they are (they are trapped).
A residual of the latents, Y = X T alpha + lambda X W, breaks the likeness while training, and is annealed to nothing:

    lambda |   .-"-.
           |  /     `.
           | /        `.
           |/            `-._______
           +--------------------------  optimizer steps
           0  warmup      end     100%

In the steps after its end the layers learn to do without it, if the learning rate is not 0 by then.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sherry_gguf.train.experts import QuantizedExperts
from sherry_gguf.train.layers import QuantizedLinear

WARMUP = 0.1
END = 0.5  # published: 1


def residual_weight(
    step: int, total_steps: int, maximum: float = 1.0, warmup: float = WARMUP, end: float = END
) -> float:
    """lambda in optimizer step 1..total_steps: it rises to ``maximum`` in the first ``warmup`` of them, linearly.

    Then it falls as a cosine does, and is exactly 0 from step ``last_step(total_steps, end)`` on. warmup and end are
    shares of total_steps; an end before the warmup's cuts the rise off. Published: 0.1 and 1.
    """
    rise = max(1, round(total_steps * warmup))
    last = last_step(total_steps, end)
    if step >= last:
        return 0.0
    if step <= rise:
        return maximum * step / rise
    return maximum * 0.5 * (1 + math.cos(math.pi * (step - rise) / (last - rise)))


def last_step(total_steps: int, end: float = END) -> int:
    """The first of the steps 1..total_steps in which lambda is 0 for good: ``end`` of them, to the nearest."""
    return max(1, round(total_steps * end))


def set_residual(model: nn.Module, weight: float) -> None:
    """Give all quantized layers and experts this lambda."""
    for layer in model.modules():
        if isinstance(layer, QuantizedLinear | QuantizedExperts):
            layer.residual = weight


class ArenasCallback(TrainerCallback):
    """Sets lambda before each optimizer step of a Trainer, by its global step: gradient accumulation does not count,
    and a resumed run goes on where it was."""

    def __init__(self, maximum: float = 1.0, warmup: float = WARMUP, end: float = END) -> None:
        self.maximum, self.warmup, self.end = maximum, warmup, end
        self.current = 0.0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.current = residual_weight(state.global_step + 1, state.max_steps, self.maximum, self.warmup, self.end)
        set_residual(kwargs["model"], self.current)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.current = 0.0
        set_residual(kwargs["model"], 0.0)
