"""How fast a training is, and how long it will take."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class PaceCallback(TrainerCallback):
    """tokens_per_second of all processes and seconds_left, since the training began or was resumed; None before."""

    def __init__(self, ctx_size: int) -> None:
        self.ctx_size = ctx_size
        self.tokens_per_second: float | None = None
        self.seconds_left: float | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._began, self._first = time.monotonic(), state.global_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        blocks = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        seconds_a_step = (time.monotonic() - self._began) / (state.global_step - self._first)
        self.tokens_per_second = blocks * self.ctx_size / seconds_a_step
        self.seconds_left = seconds_a_step * (state.max_steps - state.global_step)
