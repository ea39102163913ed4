"""Models to run: files of random weights that this writes, or files of one's own, and what they read for a token."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sherry_gguf.errors import SherryError

from .ggml import Ggml
from .shapes import SHAPES, Shape

OURS = "sherry-gguf"


@dataclass(frozen=True)
class Model:
    """A file to run, and what it reads for a token."""

    path: Path
    shape: str
    type: str
    bits: float  # of a weight of the linear layers
    read_bytes: float  # of weights, in one step of generating
    products: float  # of weights and activations in the linear layers, for a token
    runtime: str = OURS  # what runs it


class Writer:
    """Writes models of random weights."""

    def __init__(self, gguf: Any, ggml: Ggml, output: str) -> None:
        self.gguf, self.ggml, self.output = gguf, ggml, output
        self._rows: dict[tuple[str, int], npt.NDArray[np.uint8]] = {}

    def _matrix(self, type_name: str, rows: int, k: int) -> npt.NDArray[np.uint8]:
        """uint8[rows, row_bytes]: a few rows that ggml has quantized, again and again."""
        if (type_name, k) not in self._rows:
            values = np.random.default_rng(k).standard_normal((32, k)).astype(np.float32) * np.float32(0.02)
            self._rows[type_name, k] = self.ggml.quantize(self.gguf.GGMLQuantizationType[type_name].value, values)
        some = self._rows[type_name, k]
        return np.tile(some, (-(-rows // len(some)), 1))[:rows]

    def _matrices(self, shape: Shape, type_name: str) -> Iterator[tuple[str, str, int, int]]:
        """name, type, rows, weights in a row"""
        yield "token_embd.weight", self.output, shape.vocabulary, shape.hidden
        for layer in range(shape.layers):
            for name, (rows, k) in shape.linear().items():
                yield f"blk.{layer}.{name}.weight", type_name, rows, k
        yield "output.weight", self.output, shape.vocabulary, shape.hidden

    def size(self, shape: Shape, type_name: str) -> int:
        """Bytes of the matrices, which is nearly all."""
        ids, matrices = self.gguf.GGMLQuantizationType, self._matrices(shape, type_name)
        return sum(rows * self.ggml.row_bytes(ids[name].value, k) for _, name, rows, k in matrices)

    def write(self, path: Path, shape: Shape, type_name: str) -> None:
        """Tensor after tensor: no more than one is in memory."""
        gguf = self.gguf
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_name(f"random weights, {type_name}")
        writer.add_block_count(shape.layers)
        writer.add_context_length(8192)
        writer.add_embedding_length(shape.hidden)
        writer.add_feed_forward_length(shape.ffn)
        writer.add_head_count(shape.heads)
        writer.add_head_count_kv(shape.kv_heads)
        writer.add_key_length(shape.head_dim)
        writer.add_value_length(shape.head_dim)
        writer.add_rope_dimension_count(shape.head_dim)
        writer.add_rope_freq_base(500000.0)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_vocab_size(shape.vocabulary)
        writer.add_tokenizer_model("no_vocab")  # a word that llama.cpp of 2024, which bitnet.cpp has, knows too
        writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{type_name}"])

        norms = [f"blk.{i}.{name}.weight" for i in range(shape.layers) for name in ("attn_norm", "ffn_norm")]
        norms.append("output_norm.weight")
        ones = np.ones(shape.hidden, np.float32)
        matrices = list(self._matrices(shape, type_name))
        for name, matrix_type, rows, k in matrices:
            qtype = gguf.GGMLQuantizationType[matrix_type]
            bytes_shape = rows, self.ggml.row_bytes(qtype.value, k)
            writer.add_tensor_info(name, bytes_shape, np.dtype(np.uint8), rows * bytes_shape[1], qtype)
        for name in norms:
            writer.add_tensor_info(name, ones.shape, ones.dtype, ones.nbytes)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, matrix_type, rows, k in matrices:
            writer.write_tensor_data(self._matrix(matrix_type, rows, k))
        for _ in norms:
            writer.write_tensor_data(ones)
        writer.close()


@contextmanager
def folder_of_models(keep: Path | None) -> Iterator[Path]:
    """The folder to keep models in, or one that is gone afterwards."""
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="bench-models-") as folder:
            yield Path(folder)
    else:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep


def write_models(gguf: Any, ggml: Ggml, shape: str, types: list[str], output: str, folder: Path) -> list[Model]:
    """One model of each type in the folder; those that are there already are kept."""
    writer = Writer(gguf, ggml, output)
    paths = {type_name: folder / f"{shape}-{type_name}-{output}.gguf" for type_name in types}
    missing = {type_name: path for type_name, path in paths.items() if not path.exists()}
    needed = sum(writer.size(SHAPES[shape], type_name) for type_name in missing)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise SherryError(
            f"the models take {needed / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB left: "
            "name a directory with --keep DIR, or take fewer --types"
        )
    for type_name, path in missing.items():
        print(f"writing {path.name}", file=sys.stderr)
        partial = path.with_suffix(".partial")
        writer.write(partial, SHAPES[shape], type_name)
        partial.replace(path)
    return [read_model(gguf, path, shape) for path in paths.values()]


def read_model(gguf: Any, path: Path, shape: str | None = None) -> Model:
    """What a file's header says. shape: a name for those that may be compared (default: layers x width)."""
    try:
        reader = gguf.GGUFReader(path)
    except (OSError, ValueError) as error:
        raise SherryError(f"{path} is no GGUF file that can be read: {error}") from None
    architecture = str(reader.get_field("general.architecture").contents())

    def number(key: str, default: float) -> float:
        field = reader.get_field(f"{architecture}.{key}")
        return default if field is None else float(field.contents())

    # of experts only some are read
    used = number("expert_used_count", 1) / number("expert_count", 1)
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    read_bytes = products = 0.0
    weights: dict[str, int] = {}
    linear_bytes = 0
    for tensor in reader.tensors:
        part = used if "_exps" in tensor.name else 1
        if tensor.name != "token_embd.weight" or tied:
            read_bytes += part * int(tensor.n_bytes)
        if tensor.name.startswith("blk.") and len(tensor.shape) > 1:
            products += part * int(tensor.n_elements)
            linear_bytes += int(tensor.n_bytes)
            name = tensor.tensor_type.name
            weights[name] = weights.get(name, 0) + int(tensor.n_elements)
    if not weights:
        raise SherryError(f"{path} has no linear layers")
    return Model(
        path=path,
        shape=shape or f"{number('block_count', 0):.0f}x{number('embedding_length', 0):.0f}",
        type=max(weights, key=lambda name: weights[name]),
        bits=8 * linear_bytes / sum(weights.values()),
        read_bytes=read_bytes,
        products=products,
    )
