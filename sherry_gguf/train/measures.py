"""What training does to weights and gradients, measured as in arXiv 2601.07892, section 4.

Weight trapping: latents that settle at fixed multiples of their scale, and no longer move. The distribution of
|w| / alpha shows it. Collapse: gradients that are alike in all rows. Their effective rank shows it, exp of the entropy
of the singular values taken as probabilities (Roy and Vetterli 2007): 1 for one direction, n for n equal ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sherry_gguf.train.layers import QuantizedLinear, quantized_layers
from sherry_gguf.train.methods import QUANTIZERS

MAGNITUDE_EDGES: npt.NDArray[np.float64] = np.linspace(0, 4, 81)
MAGNITUDE_EDGES.setflags(write=False)
_WATCHED = 8  # layers whose gradients are decomposed, spread over the model
_LARGEST = 1024  # rows and columns of a gradient that are looked at, as a decomposition takes their cube in time


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which every process holds a part (FSDP), gathered: all of them must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def effective_rank(matrix: Tensor) -> float:
    """[m, n] -> 1..min(m, n); nan for a matrix of zeros. Of a larger one, the first 1024 rows and columns."""
    values = torch.linalg.svdvals(matrix[:_LARGEST, :_LARGEST].to(torch.float64))
    shares = values[values > 0] / values.sum()
    return float(torch.exp(-(shares * shares.log()).sum())) if len(shares) else float("nan")


def magnitudes(layer: QuantizedLinear) -> npt.NDArray[np.int64]:
    """int64[80]: how many of a layer's |w| / alpha lie between MAGNITUDE_EDGES; the last bin holds all above, too."""
    length = layer.granularity.run_length(layer.out_features, layer.in_features)
    runs = whole(layer.weight.detach()).reshape(-1, length)
    alpha = QUANTIZERS[layer.method](runs).abs().amax(dim=-1, keepdim=True)
    ratios = (runs.abs() / alpha).clamp_max(MAGNITUDE_EDGES[-1])
    return np.histogram(ratios.float().cpu().numpy(), MAGNITUDE_EDGES)[0]


class MeasuresCallback(TrainerCallback):
    """Every ``steps`` optimizer steps, before the step is made: one line of JSON for the file.

    step            the optimizer step, from 1
    effective_rank  layer -> of its weight's gradient, for eight layers over the model
    magnitudes      counts of |w| / alpha over all quantized layers, per bin of MAGNITUDE_EDGES
    """

    def __init__(self, file: Path, steps: int) -> None:
        self.file, self.steps = file, steps
        self.effective_rank: float | None = None  # the latest, as the mean over the layers watched

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and self.file.is_file():  # resumed: what came after the checkpoint comes again
            lines = self.file.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if json.loads(line)["step"] <= state.global_step]
            self.file.write_text("".join(kept), encoding="utf-8")

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        step = state.global_step + 1
        if step != 1 and step % self.steps:
            return
        ranks, histogram = measure(kwargs["model"])  # in all processes, as each may hold a part
        if not state.is_world_process_zero:
            return
        self.effective_rank = float(np.mean(list(ranks.values())))
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "effective_rank": ranks, "magnitudes": histogram.tolist()}) + "\n")


def measure(model: nn.Module) -> tuple[dict[str, float], npt.NDArray[np.int64]]:
    """Effective ranks of the gradients of some layers, and ``magnitudes`` summed over all."""
    layers = quantized_layers(model)
    names = list(layers)
    watched = names[:: max(1, len(names) // _WATCHED)]
    gradients = {name: layers[name].weight.grad for name in watched}
    ranks = {name: effective_rank(whole(gradient)) for name, gradient in gradients.items() if gradient is not None}
    return ranks, np.sum([magnitudes(layer) for layer in layers.values()], axis=0)
