"""GGUF files through gguf-py's own reader, which shares nothing with the package's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def tensors_of(path: Path, prefix: str = "") -> dict[str, Any]:
    """Name -> gguf-py's tensor, of those whose name begins so."""
    import gguf

    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name.startswith(prefix)}


def field(path: Path, key: str) -> Any:
    """A value of the metadata, None where there is none."""
    import gguf

    found = gguf.GGUFReader(path).get_field(key)
    return None if found is None else found.contents()


def matrices_of(path: Path) -> dict[str, Any]:
    """Name -> tensor, of the matrices in the decoder's blocks."""
    return {name: tensor for name, tensor in tensors_of(path, "blk.").items() if "norm" not in name}


def values_of(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Name -> float32 values of ``matrices_of``, by gguf-py."""
    import gguf

    return {name: gguf.quants.dequantize(t.data, t.tensor_type) for name, t in matrices_of(path).items()}
