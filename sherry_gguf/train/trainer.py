"""transformers' Trainer with a teacher, and with lambda and effective rank in its log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from accelerate import DistributedType, PartialState
from torch import Tensor, nn
from torch.nn import functional
from transformers import SchedulerType, TrainerCallback

from sherry_gguf.train.arenas import END, last_step


@dataclass(frozen=True)
class Teacher:
    """model: a causal LM of the same vocabulary; weight: its share of the loss; temperature: of both softmaxes."""

    model: nn.Module
    weight: float = 1.0
    temperature: float = 1.0


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Logits [n, n_vocab] of both -> the sum over n of KL(teacher || student) * temperature^2, in nats.

    The square keeps the size of the gradients (Hinton et al., arXiv 1503.02531).
    """
    log_student = functional.log_softmax(student.float() / temperature, dim=-1)
    log_teacher = functional.log_softmax(teacher.float() / temperature, dim=-1)
    return functional.kl_div(log_student, log_teacher, reduction="sum", log_target=True) * temperature**2


class Trainer(transformers.Trainer):
    """Trains on blocks of ``input_ids``.

    arenas_end  share of the steps after which a rate of ``warmup_stable_decay`` falls: those that have no residual
    extras      what else to log, by name, each an attribute of a callback
    """

    def __init__(
        self,
        *,
        teacher: Teacher | None = None,
        arenas_end: float = END,
        extras: dict[str, tuple[TrainerCallback, str]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(data_collator=_collate, **kwargs)
        self.arenas_end = arenas_end
        self.extras = extras or {}
        self.teacher = teacher
        if teacher is not None:
            teacher.model.requires_grad_(False).eval().to(self.args.device)

    def create_accelerator_and_postprocess(self) -> None:
        state = PartialState()
        if self.args.fsdp and state.distributed_type == DistributedType.MULTI_CPU:
            # accelerate shards among accelerators alone, and would give each process of a CPU the whole model, unsaid;
            # PyTorch shards there as well
            state.distributed_type = DistributedType.MULTI_GPU
        super().create_accelerator_and_postprocess()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The model's own loss or, with a teacher, (1 - weight) of it and weight of the divergence from the teacher."""
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if self.teacher is not None and model.training:
            with torch.no_grad():
                expected = self.teacher.model(input_ids=inputs["input_ids"]).logits
            # the last position of a block predicts a token outside it, and has no part in the model's loss either
            student, expected = (logits[:, :-1].flatten(0, 1) for logits in (outputs.logits, expected))
            kl = divergence(student, expected, self.teacher.temperature) / len(student)
            if num_items_in_batch is not None:
                # The model's loss is a share of the loss of a step: over its micro-batches and processes. So is this.
                kl = kl * (len(student) / num_items_in_batch)
                if self.args.average_tokens_across_devices:
                    kl = kl * self.accelerator.num_processes
            loss = (1 - self.teacher.weight) * loss + self.teacher.weight * kl
        return (loss, outputs) if return_outputs else loss

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The scheduler asked for; the decay of ``warmup_stable_decay`` begins where Arenas ends, if nothing else is
        asked for (``lr_scheduler_kwargs``).
        """
        if self.args.lr_scheduler_type == SchedulerType.WARMUP_STABLE_DECAY:
            decay = num_training_steps - last_step(num_training_steps, self.arenas_end)
            self.args.lr_scheduler_kwargs = {"num_decay_steps": decay, **(self.args.lr_scheduler_kwargs or {})}
        return super().create_scheduler(num_training_steps, optimizer)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            found = {name: getattr(callback, attribute) for name, (callback, attribute) in self.extras.items()}
            logs |= {name: value for name, value in found.items() if value is not None}
        super().log(logs, start_time)


def _collate(samples: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    tokens = torch.tensor([sample["input_ids"] for sample in samples], dtype=torch.int64)
    return {"input_ids": tokens, "labels": tokens}
