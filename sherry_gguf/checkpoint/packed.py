"""Ternary weights as transformers packs them for BitNet: four values of two bits in a byte, along the output dimension.

    weight        uint8[rows / 4, k]: bits 2i, 2i + 1 of byte (r, c) are value (i * rows / 4 + r, c) plus 1; 3 is none
    weight_scale  one number; the forward of ``BitLinear`` divides by it, that of ``AutoBitLinear`` multiplies

config.json's ``quantization_config`` says which of the two it is (``linear_class``). Falcon3-1.58bit and Falcon-E are
published so. Here such a matrix is seen as float32[rows, k], its values times the scale.

Source: integrations/bitnet.py of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch

from sherry_gguf.checkpoint.stores import Store, TensorInfo
from sherry_gguf.errors import SherryError

PER_BYTE: Final = 4
_SCALE: Final = "_scale"  # behind the name of the weight
_NO_VALUE: Final = 3


def is_bitnet(config: Mapping[str, Any]) -> bool:
    """Whether config.json says that transformers quantized, or quantizes, the model as BitNet."""
    quantization = config.get("quantization_config")
    return isinstance(quantization, Mapping) and quantization.get("quant_method") == "bitnet"


def unpacked(store: Store, config: Mapping[str, Any]) -> Store:
    """The store, or a view of it that has the packed matrices of a BitNet checkpoint unpacked."""
    if not is_bitnet(config):
        return store
    multiplies = config["quantization_config"].get("linear_class") == "autobitlinear"
    names = [name for name in store.names() if name.endswith(".weight") and store.info(name).dtype is torch.uint8]
    return _Unpacked(store, names, multiplies=multiplies)


class _Unpacked:
    """packed: the names of the packed matrices."""

    def __init__(self, store: Store, packed: list[str], *, multiplies: bool) -> None:
        self._store, self._multiplies = store, multiplies
        self._scales: dict[str, float] = {}
        known = set(store.names())
        for name in packed:
            scale = f"{name}{_SCALE}"
            if scale not in known or store.info(scale).shape not in ((), (1,)):
                raise SherryError(f"{name}: is packed, and no {scale} of one number is beside it; download it again")
            found = float(store.load(scale))
            if not 0 < found < float("inf"):
                raise SherryError(f"{scale}: is {found:g}, no scale of weights; the checkpoint is damaged")
            self._scales[name] = found

    def names(self) -> list[str]:
        scales = {f"{name}{_SCALE}" for name in self._scales}
        return [name for name in self._store.names() if name not in scales]

    def info(self, name: str) -> TensorInfo:
        info = self._store.info(name)
        if name not in self._scales:
            return info
        rows, *others = info.shape
        return TensorInfo((PER_BYTE * rows, *others), torch.float32)

    def load(self, name: str) -> torch.Tensor:
        if name not in self._scales:
            return self._store.load(name)
        return self._values(name, torch.cat([self._store.load(name) >> 2 * i & 3 for i in range(PER_BYTE)]))

    def head(self, name: str, rows: int) -> torch.Tensor:
        if name not in self._scales:
            return self._store.head(name, rows)
        if rows > self._store.info(name).shape[0]:
            return self.load(name)[:rows]
        return self._values(name, self._store.head(name, rows) & 3)

    def _values(self, name: str, codes: torch.Tensor) -> torch.Tensor:
        if (wrong := codes == _NO_VALUE).any():
            row, column = torch.nonzero(wrong)[0].tolist()
            raise SherryError(f"{name}: the code of weight {column} of row {row} is 3, no ternary value; it is damaged")
        scale = torch.tensor(self._scales[name], dtype=torch.float32)
        return (codes.to(torch.float32) - 1) * (scale if self._multiplies else 1 / scale)
