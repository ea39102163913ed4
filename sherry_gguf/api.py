"""The functions for Python programs: convert a checkpoint, see what a file holds, read its tensors.

A process can have one ``gguf`` only, and ``convert_checkpoint`` needs that of the pinned llama.cpp: call it before
anything else imports ``gguf``, as the other two do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from sherry_gguf.errors import SherryError
from sherry_gguf.files.gguf_file import GgufFile, open_gguf
from sherry_gguf.files.inspect import UNKNOWN, Inspection, inspect
from sherry_gguf.files.tensor import FileTensor
from sherry_gguf.formats.planes import Planes
from sherry_gguf.threads import threads

if TYPE_CHECKING:
    from sherry_gguf.convert import Conversion

_PLAIN: Final = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}


def convert_checkpoint(
    model: str | PathLike[str],
    outfile: str | PathLike[str] | None = None,
    *,
    outtype: str | None = None,
    force: bool = False,
) -> Conversion:
    """Convert a checkpoint that says how it was trained to a GGUF file, verified weight by weight.

    model    its folder: config.json, tokenizer, weights
    outfile  default: in that folder, named after the model
    outtype  of the ternary layers, such as ``"q2_0"``; default: the smallest of this project's types, or TQ2_0
    force    replace an existing outfile

    Returns what was written: ``outfile``, ``tensors`` (name, type_name, shape, n_bytes), ``losses`` (empty, as nothing
    is lost), ``notes``, and ``bits_per_weight()``. The pinned llama.cpp's source is fetched on first use.
    Raises SherryError for a checkpoint or file that cannot be used, and OSError where the disk fails; outfile is then
    as it was. What else there is to choose has ``sherry_gguf.convert.convert``.
    """
    from sherry_gguf.convert import TypeChoice, convert

    types = TypeChoice(outtype=outtype)
    with threads():
        return convert(Path(model), None if outfile is None else Path(outfile), types=types, force=force)


def inspect_file(path: str | PathLike[str]) -> Inspection:
    """What a GGUF file holds: types by the bytes of the tensors, and the statistics of those that are ternary.

    Returns ``tensors``, each with its ``tensor`` (name, info.shape, n_bytes), ``type_name`` and ``statistics``
    (``codes`` int64[32], ``scales``, ``grid``; None for a tensor that is not ternary), ``by_type()``, ``oddities`` and
    ``refusals``, which tell why a llama.cpp without the patch would refuse the file.
    Raises SherryError for what is no GGUF file, or a damaged one.
    """
    return inspect(Path(path))


def load_tensors(path: str | PathLike[str]) -> Tensors:
    """The tensors of a GGUF file as NumPy arrays, each read when it is asked for; see ``Tensors``.

    Raises SherryError for what is no GGUF file, or a damaged one.
    """
    return Tensors(open_gguf(Path(path)))


class Tensors(Mapping[str, npt.NDArray[Any]]):
    """name -> weights, in the order of the file and the shapes of PyTorch: ``[rows, k]`` of a matrix.

    Quantized types come as float32, and so does BF16; F32, F16, F64 and integers in their own dtype. Nothing is kept:
    ask twice, and the tensor is read twice. Arrays are writable copies.
    Raises KeyError for a name that the file has not, and SherryError for a tensor whose type is not known, or whose
    bytes cannot be this type's.
    """

    def __init__(self, file: GgufFile) -> None:
        self._tensors = {tensor.name: tensor for tensor in file.tensors}

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"<{len(self)} tensors of a GGUF file>"

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        tensor = self._sound(name)
        shape = tuple(reversed(tensor.info.shape))
        return _values(tensor).reshape(shape)

    def planes(self, name: str) -> Planes:
        """The ternary values and scales of a tensor in a type that has such: a weight is the sum over planes of t * d.

        Returns ``t`` int8[planes, rows, k], which is -1, 0 or 1, and ``d`` float16[planes, rows, k/block].
        Raises SherryError for a tensor of another type.
        """
        tensor = self._sound(name)
        if tensor.ternary_type is None:
            raise SherryError(f"{tensor.place}: {tensor.type_name} has no ternary values")
        return tensor.ternary_type.decode(tensor.rows)

    def _sound(self, name: str) -> FileTensor:
        tensor = self._tensors[name]
        if tensor.problem or tensor.type is None:
            raise SherryError(f"{tensor.place}: {tensor.problem or f'the type {tensor.info.type_id} is {UNKNOWN}'}")
        return tensor


def _values(tensor: FileTensor) -> npt.NDArray[Any]:
    """All weights, in a shape that can be reshaped."""
    import gguf

    name = tensor.type_name or UNKNOWN
    if name in _PLAIN:
        return np.array(tensor.stored.view(_PLAIN[name]))
    if tensor.ternary_type is not None:
        return tensor.ternary_type.dequantize(tensor.rows)
    if name not in gguf.GGMLQuantizationType.__members__:  # I2_S of bitnet.cpp
        raise SherryError(f"{tensor.place}: {name} cannot be read as numbers")
    try:
        values = gguf.quants.dequantize(tensor.rows, gguf.GGMLQuantizationType[name])
    except NotImplementedError:
        raise SherryError(f"{tensor.place}: gguf-py cannot read {name}") from None
    return np.array(values, dtype=np.float32)
