"""The inputs of a decoder layer's matrices, seen while it is computed.

Every linear layer of transformers ends in ``torch.nn.functional.linear``, and so does each expert of a stack: a mode of
PyTorch's sees those calls, and the memory of the weight tells the matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from sherry_gguf.calibrate.decoder import expert_names
from sherry_gguf.calibrate.hessian import Hessian


@dataclass(frozen=True)
class Matrix:
    """Matrices of a checkpoint that one linear layer multiplies with.

    rows    name -> their rows in ``weights``
    weights float32[rows, k], those of the model
    stack   the stack of experts that it is of; None: it is no expert's
    """

    rows: Mapping[str, slice]
    weights: torch.Tensor
    stack: str | None = None


def matrices(layer: nn.Module, prefix: str, targets: Iterable[str], names: Iterable[str]) -> list[Matrix]:
    """The targets' matrices in a loaded decoder layer, whose tensors' names begin with ``prefix``."""
    wanted, known, found = set(targets), list(names), []
    for name, parameter in layer.named_parameters():
        if prefix + name in wanted:
            found.append(Matrix({prefix + name: slice(0, len(parameter))}, parameter))
            continue
        for expert, parts in enumerate(expert_names(prefix + name, known)):
            height = parameter.shape[1] // len(parts)
            rows = {part: slice(i * height, (i + 1) * height) for i, part in enumerate(parts) if part in wanted}
            if rows:
                found.append(Matrix(rows, parameter[expert], prefix + name))
    return found


class Watch(TorchFunctionMode):
    """Sums H of the inputs of each matrix. Linear layers that are handed the very same tensor share one."""

    def __init__(self, watched: Iterable[Matrix]) -> None:
        super().__init__()
        self._by_memory = {matrix.weights.data_ptr(): i for i, matrix in enumerate(watched)}
        self.hessians: dict[int, Hessian] = {}
        self._last: tuple[torch.Tensor | None, Hessian | None] = (None, None)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.linear and len(args) > 1:
            index = self._by_memory.get(args[1].data_ptr())
            if index is not None:
                self._add(index, args[0])
        return func(*args, **(kwargs or {}))

    def _add(self, index: int, inputs: torch.Tensor) -> None:
        last, shared = self._last
        if inputs is last and shared is not None and self.hessians.setdefault(index, shared) is shared:
            return
        hessian = self.hessians.setdefault(index, Hessian(inputs.shape[-1], inputs.device))
        hessian.add(inputs)
        self._last = (inputs, hessian)
