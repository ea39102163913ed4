"""A type that exists in NumPy only is a layout and a line of the table: a toy one goes through everything.

Its 32 weights take 7 bytes, and a weight is the sum of two ternary values with a scale each. Four neighbours are equal.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
from packing import pack
from refusals import refused

from sherry_gguf.cli import main
from sherry_gguf.convert import TypeChoice, convert
from sherry_gguf.errors import SherryError
from sherry_gguf.files.gguf_file import open_gguf
from sherry_gguf.formats import table
from sherry_gguf.formats.groups import signs
from sherry_gguf.formats.planes import Planes
from sherry_gguf.formats.registration import register
from sherry_gguf.formats.tensor_type import TensorType

BLOCK = np.dtype([("d", "<f2", 2), ("signs", np.uint8, 1), ("trits", np.uint8, 2)])
SHIFTS = np.array([0, 2, 4, 6], dtype=np.uint8)


def encode(weights):
    """float32[rows, n*32] -> uint8[rows, n*7], the first scale being 0: it writes one magnitude a block."""
    fours = weights.reshape(len(weights), -1, 8, 4)[..., 0]
    out = np.zeros(fours.shape[:2], dtype=BLOCK)
    out["d"][..., 1] = np.abs(fours).max(axis=-1)
    codes = (signs(fours) + np.int8(1)).view(np.uint8).reshape(*fours.shape[:2], 2, 4)
    out["trits"] = np.bitwise_or.reduce(codes << SHIFTS, axis=-1)
    return out.view(np.uint8).reshape(len(weights), -1)


def decode(data):
    blocks = np.ascontiguousarray(data).view(BLOCK)
    first = np.unpackbits(blocks["signs"], axis=-1).astype(np.int8) * 2 - 1
    second = (blocks["trits"][..., None] >> SHIFTS & 3).astype(np.int8).reshape(first.shape) - 1
    t = np.stack([first, second]).repeat(4, axis=-1)
    return Planes(t.reshape(2, len(blocks), -1), np.moveaxis(blocks["d"], -1, 0))


TOY = TensorType(
    name="TOY", type_id=600, block=32, block_bytes=7, encode=encode, decode=decode, file_type=600, planes=2,
    only_ternary=False,
)  # fmt: skip


@pytest.fixture
def gguf(pinned_gguf, monkeypatch):
    """The line of the table; gguf-py then has the type as well."""
    monkeypatch.setattr(table, "_TYPES", [*table._TYPES, TOY])
    register(pinned_gguf)
    return pinned_gguf


@pytest.fixture
def weights():
    """float32[6, 1024]: fours of equal weights, a scale for every 256."""
    rng = np.random.default_rng(0)
    t = rng.integers(-1, 2, (6, 256)).repeat(4, axis=1)
    return (t * rng.uniform(0.5, 2, (6, 4)).astype(np.float16).repeat(256, axis=1)).astype(np.float32)


@pytest.fixture
def file(gguf, weights, tmp_path):
    """A model of two matrices, written by gguf-py: one can be any ternary type's, one has four magnitudes a block."""
    other = np.frombuffer(np.random.default_rng(1).bytes(6 * 32 * 7), dtype=BLOCK).reshape(6, 32).copy()
    other["d"] = 1, 0.25
    other["trits"] &= 0x55  # t is -1 or 0, and so is no code that a trit has not
    writer = gguf.GGUFWriter(tmp_path / "toy.gguf", "llama")
    writer.add_file_type(600)
    qtype = gguf.GGMLQuantizationType.TOY
    writer.add_tensor("ternary", gguf.quants.quantize(weights, qtype), raw_dtype=qtype)
    writer.add_tensor("planes", other.view(np.uint8).reshape(6, -1), raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "toy.gguf"


def test_what_is_written_is_read(gguf, file, weights):
    ternary, planes = open_gguf(file).tensors
    assert (ternary.type, planes.type) == (TOY, TOY)
    assert np.array_equal(next(ternary.chunks()).weights, weights)
    assert np.array_equal(gguf.GGUFReader(file).tensors[0].data, ternary.rows)
    assert set(np.unique(next(planes.chunks()).weights)) == {-1.25, -1, 0.75, 1}
    assert TOY.holds(weights)
    assert not TOY.holds(weights + np.eye(6, 1024, dtype=np.float32))
    with pytest.raises(
        SherryError, match=r"do not fit TOY: its blocks have 32 weights and 2 scales; .* row 3, group 1"
    ):
        TOY.pack(weights + (np.arange(6) == 3)[:, None] * np.eye(6, 1024, 3, dtype=np.float32))


def test_inspect(file, capsys):
    assert main(["inspect", str(file)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"TOY +│ 600 +│ +2 +│ +12,288 │ +2,688 │ +1\.7500", said), said
    assert "TOY (id 600)" in said
    assert "dense ternary" in said
    assert "it does not know id 600 (TOY, 2 tensors)" in said


@pytest.mark.parametrize("outtype", ["tq1_0", "tq2_0", "q2_0", "q4_0"])
def test_requantize(file, weights, outtype, tmp_path):
    """The ternary matrix to any other type and back, to the bytes it began with; the other is left alone."""
    there, back = tmp_path / "there.gguf", tmp_path / "back.gguf"
    assert main(["requantize", str(file), "--outtype", outtype, "--outfile", str(there)]) == 0
    ternary, planes = open_gguf(there).tensors
    assert (ternary.type_name, planes.type) == (outtype.upper(), TOY)
    assert ternary.stored.tobytes() == pack(outtype.upper(), weights)
    assert main(["requantize", str(there), "--outtype", "toy", "--outfile", str(back)]) == 0
    assert back.read_bytes() == file.read_bytes()


def test_requantize_refuses(file, capsys):
    assert main(["requantize", str(file), "--outtype", "sherry"]) == 1
    said = capsys.readouterr().err
    assert "weights do not fit SHERRY and would change" in said
    assert said.endswith("; all fit --outtype tq1_0 or toy or tq2_0 or q2_0 or q4_0\n")


def test_convert_refuses_with_the_types_that_fit(gguf, tiny_checkpoint, tmp_path):
    with refused(r"^blk\.\S+: [\d,]+ of 196,608 weights do not fit TOY .*; 42 of 42 .*; --outtype q2_0 holds all$"):
        convert(tiny_checkpoint, tmp_path / "x.gguf", types=TypeChoice(outtype="toy"))
