"""Tensors in bitnet.cpp's I2_S, once somebody says in which order their bytes are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from sherry_gguf.errors import SherryError, Way, naming
from sherry_gguf.files import tensor
from sherry_gguf.files.gguf_file import GgufFile
from sherry_gguf.files.tensor import FileTensor
from sherry_gguf.formats.i2_s import I2_S, LAYOUTS, Layout, decode
from sherry_gguf.formats.planes import Planes
from sherry_gguf.formats.scales import fit, nearest


@dataclass(frozen=True)
class I2sTensor(FileTensor):
    """A tensor whose ``chunks`` are the weights of its layout, the scale rounded to fp16."""

    layout: Layout = "x86"

    def chunks(self) -> Iterator[Planes]:
        """As ``FileTensor``; its codes are all in memory, a byte a weight."""
        with naming(self.place):
            t, scale = decode(self.stored, self.info.shape, self.layout)
            if not fit(scale).all():
                raise SherryError(f"its scale {scale[0]:g} does not fit fp16 (5.96e-08 to 65504)")
        step = tensor.rows_at_a_time(self.info.row)
        for start in range(0, len(t), step):
            part = t[start : start + step]
            yield Planes(part[None], nearest(scale)[None, None].repeat(len(part), axis=1))

    def rounding(self) -> float:
        """How far the scale is from the file's, by its own size."""
        _, scale = decode(self.stored, self.info.shape, self.layout)
        return float(abs(nearest(scale)[0] - scale[0]) / scale[0]) if scale[0] else 0.0


def with_layout(file: GgufFile, layout: Layout | None) -> GgufFile:
    """The file, its I2_S tensors readable. Raises SherryError where it has some and nobody says their layout."""
    names = [tensor.name for tensor in file.tensors if tensor.type is I2_S]
    if names and layout is None:
        raise SherryError(
            f"{file.path}: {len(names)} tensors, the first {names[0]}, are I2_S of bitnet.cpp, whose bytes are in the "
            f"order of the machine that wrote the file ({', '.join(LAYOUTS)}), and as plausible in any",
            Way.I2S_LAYOUT,
        )
    if layout is None:
        return file
    tensors = [I2sTensor(t.info, t.header, t.type, t.problem, layout) if t.type is I2_S else t for t in file.tensors]
    return replace(file, tensors=tensors)
