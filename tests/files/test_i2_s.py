"""bitnet.cpp's types: I2_S becomes another type once its layout is named; TL1 and TL2 are told and refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from packing import pack
from reading import values_of
from refusals import refused

from sherry_gguf.cli import main
from sherry_gguf.commands.requantize import WAYS
from sherry_gguf.errors import SherryError
from sherry_gguf.files.gguf_file import open_gguf
from sherry_gguf.files.inspect import inspect
from sherry_gguf.files.requantize import requantize
from sherry_gguf.formats.table import named

ROWS, K = 8, 256
SCALE = np.float32(1 / 3)  # which fp16 rounds
TQ2_0 = named("TQ2_0")


def ternary(seed: int = 0, rows: int = ROWS) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1, 2, (rows, K)).astype(np.int8)


def i2_s(t: np.ndarray, layout: str, scale: np.float32 = SCALE) -> bytes:
    """quantize_i2_s of bitnet.cpp, loop by loop."""
    q = (t + 1).astype(np.uint8).reshape(-1)
    out = np.zeros(q.size // 4, dtype=np.uint8)
    if layout == "columns":
        rows, k = t.shape
        for four in range(rows // 4):
            for column in range(k):
                for i in range(4):
                    out[four * k + column] |= q[(4 * four + i) * k + column] << (6 - 2 * i)
    else:
        stride = {"x86": 32, "arm": 16}[layout]
        for i in range(q.size // (4 * stride)):
            for j in range(4 * stride):
                out[i * stride + j % stride] |= q[i * 4 * stride + j] << (6 - 2 * (j // stride))
    return out.tobytes() + np.float32(scale).tobytes() + bytes(28)


@pytest.fixture
def file(build, parts):
    """make(content, type_id): a model of two matrices of these bytes, as bitnet.cpp writes it."""

    def make(contents, type_id=36, rows=ROWS):
        entries = [parts.entry("general.architecture", 8, "llama"), parts.entry("general.file_type", 4, 40)]
        tensors = [(f"blk.{i}.ffn_up.weight", (K, rows), type_id, content) for i, content in enumerate(contents)]
        return build([*tensors, ("blk.0.ffn_norm.weight", (8,), 0, parts.f32(1, 8))], entries)

    return make


@pytest.mark.parametrize("layout", ["x86", "arm", "columns"])
def test_every_weight_in_another_type(file, tmp_path, layout, capsys):
    path = file([i2_s(ternary(i), layout) for i in range(2)])
    out = tmp_path / "y.gguf"
    assert main(["requantize", str(path), "--outtype", "tq2_0", "--i2s-layout", layout, "--outfile", str(out)]) == 0
    said = capsys.readouterr().out
    assert "2 tensors, I2_S before, are TQ2_0 now" in said
    assert f"I2_S's scales were rounded to fp16, by {abs(float(np.float16(SCALE)) / SCALE - 1):.1e} at most" in said
    for i in range(2):
        expected = ternary(i) * np.float32(np.float16(SCALE))
        assert np.array_equal(values_of(out)[f"blk.{i}.ffn_up.weight"], expected)
    assert open_gguf(out).value("general.file_type") == 37


def test_a_layout_must_be_named(file, tmp_path):
    path = file([i2_s(ternary(), "x86")])
    with refused(
        r"1 tensors, the first blk\.0\.ffn_up\.weight, are I2_S.*\(x86, arm, columns\).*--i2s-layout x86", WAYS
    ):
        requantize(path, TQ2_0, tmp_path / "y.gguf")
    assert not (tmp_path / "y.gguf").exists()


def test_inspect_names_the_type(file, capsys):
    path = file([i2_s(ternary(), "arm")])
    assert main(["inspect", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(t["type"], t["id"]) for t in found["types"]] == [("F32", 0), ("I2_S", 36)]
    assert found["oddities"] == [
        "id 36 (1 tensor): I2_S of bitnet.cpp, whose bytes are in the order of the machine that wrote the file"
    ]
    assert found["stock_llama_cpp"]["because"] == ["it does not know id 36 (I2_S, 1 tensor)"]


@pytest.mark.parametrize(
    ("type_id", "size", "name"),
    [
        (38, ROWS * K // 4 + 32, "TL1"),
        (38, ROWS * K // 4, "TL1"),
        (39, ROWS * K // 4 + 32, "TL2"),
        (39, 256 * ROWS // 2 * 4 // 8, "TL2"),
    ],
)
def test_look_up_types_are_refused_by_name(file, tmp_path, type_id, size, name):
    path = file([bytes(size)], type_id)
    with pytest.raises(SherryError, match=rf"blk\.0\.ffn_up\.weight: is {name} of bitnet\.cpp, whose bytes are in the"):
        requantize(path, TQ2_0, tmp_path / "y.gguf")
    inspection = inspect(path)
    assert (name, type_id) in inspection.by_type()
    assert any(f"is {name} of bitnet.cpp" in oddity for oddity in inspection.oddities)


@pytest.mark.parametrize("type_id", [36, 38, 39])
@pytest.mark.parametrize("shape", [(), (1,), (3, 5)])
def test_a_tensor_that_fills_no_byte_is_none_of_them(build, type_id, shape):
    """A tensor without dimensions is one weight; a fuzzer found that its row was asked for."""
    (tensor,) = open_gguf(build([("scalar", shape, type_id, bytes(32))])).tensors
    assert tensor.type_name not in ("I2_S", "TL1", "TL2")


def test_mxfp4_has_its_id_still(file):
    assert open_gguf(file([bytes(ROWS * K // 32 * 17)], 39)).tensors[0].type_name == "MXFP4"


def test_bytes_that_are_no_i2_s(file, tmp_path):
    def wrong(at, value):
        content = bytearray(i2_s(ternary(), "x86"))
        content[at : at + len(value)] = value
        return file([bytes(content)])

    codes = ROWS * K // 4
    for at, content, words in (
        (65, b"\xc0", r"blk\.0\.ffn_up\.weight: the code of weight 1 of row 1 is 3"),
        (codes, np.float32(-1).tobytes(), r"its scale is -1\.0; it is damaged"),
        (codes, np.float32(np.nan).tobytes(), "its scale is nan; it is damaged"),
        (codes, np.float32(1e9).tobytes(), r"its scale 1e\+09 does not fit fp16"),
    ):
        with pytest.raises(SherryError, match=words):
            requantize(wrong(at, content), TQ2_0, tmp_path / "y.gguf", i2s_layout="x86")
    with pytest.raises(SherryError, match="6 rows are no whole fours, as the layout columns has them"):
        requantize(file([i2_s(ternary(rows=6), "x86")], rows=6), TQ2_0, tmp_path / "y.gguf", i2s_layout="columns")


def test_other_ternary_tensors_beside_it(build, parts, tmp_path):
    """And a type that does not hold its weights, which are no Sherry's."""
    dense = ternary(3) * np.float32(0.5)
    tensors = [("a", (K, ROWS), 36, i2_s(ternary(), "arm")), ("b", (K, ROWS), 42, pack("Q2_0", dense))]
    path = build(tensors, [parts.entry("general.architecture", 8, "llama")])
    done = requantize(path, named("TQ1_0"), tmp_path / "y.gguf", i2s_layout="arm")
    assert done.was == ("I2_S", "Q2_0")
    with refused("weights do not fit SHERRY.*--outtype tq1_0", WAYS):
        requantize(path, named("SHERRY"), tmp_path / "z.gguf", i2s_layout="arm")
